"""Which fused kernels are taken: what works and pays, what is refused, and in which sentences."""

import subprocess
import sys

import pytest
import torch

from pgolf.errors import UserError
from pgolf.kernels.fused import choice
from pgolf.kernels.fused.kernels import UNFUSED, Fused
from tests.kernels.fused.cases import DEVICE, NAMES, module

CPU = torch.device("cpu")
here = pytest.mark.skipif(DEVICE.type != "cpu", reason="kernels are compiled here, not interpreted")


def test_every_kernel_has_a_module_and_a_place():
    assert tuple(choice.MODULES) == NAMES == tuple(Fused.__dataclass_fields__)


@pytest.mark.parametrize("wanted", ["auto", "none", []])
def test_a_cpu_takes_none_unless_asked(wanted):
    assert choice.select(wanted, CPU) == (UNFUSED, [])


@here
def test_all_is_all_where_they_can_be_interpreted():
    fused, said = choice.select("all", CPU)
    assert fused.names == NAMES and fused.mlp is module("mlp").fused
    assert said == [f"fused kernels: {', '.join(NAMES)}"]


@here
@pytest.mark.parametrize("wanted", ["smear_norm", ["smear_norm"]])
def test_one_by_name(wanted):
    fused, said = choice.select(wanted, CPU)
    assert fused == Fused(smear_norm=module("smear_norm").fused) and said == ["fused kernels: smear_norm"]


@pytest.mark.parametrize("wanted", ["mpl", ["mlp", "auto"]])
def test_an_unknown_name_lists_what_there_is(wanted):
    with pytest.raises(
        UserError, match=r"is unknown: choose auto, none, all or some of mlp, cross_entropy, norm_rotary"
    ):
        choice.select(wanted, CPU)


def test_auto_on_a_gpu_takes_what_pays_and_says_what_fails(monkeypatch):
    monkeypatch.setattr(choice, "PAYS", ("mlp", "symmetric"))
    monkeypatch.setattr(choice, "probe", lambda name, device, dtype: "no kernel image" if name == "mlp" else "")
    fused, said = choice.select("auto", torch.device("cuda"))
    assert fused.names == ("symmetric",)
    assert said == [
        "fused kernel mlp cannot be used on cuda: no kernel image, so the plain operations are used",
        "fused kernels: symmetric",
    ]


def test_auto_on_a_gpu_says_that_nothing_was_measured_to_pay():
    assert choice.PAYS == ()  # change this together with figures in LAB.md
    assert choice.select("auto", torch.device("cuda")) == (UNFUSED, ["fused kernels: none"])


@pytest.mark.parametrize("wanted", ["mlp", "all"])
def test_what_was_asked_for_and_fails_is_refused(monkeypatch, wanted):
    monkeypatch.setattr(choice, "probe", lambda name, device, dtype: "it is broken")
    with pytest.raises(UserError, match=f"fused={wanted}: mlp cannot be used on cpu: it is broken"):
        choice.select(wanted, CPU)


@here
def test_a_kernel_with_another_gradient_is_not_used(monkeypatch):
    kernel = module("smear_norm")
    monkeypatch.setattr(kernel, "fused", lambda e, gate: kernel.reference(e, gate) + (e.sum() - e.sum().detach()))
    assert "disagrees with the reference" in choice.probe("smear_norm", CPU)


@here
def test_a_kernel_that_gives_no_number_or_dies_is_not_used(monkeypatch):
    kernel = module("smear_norm")
    monkeypatch.setattr(kernel, "fused", lambda e, gate: kernel.reference(e, gate) * float("nan"))
    assert choice.probe("smear_norm", CPU) == "disagrees with the reference by inf of its values"

    def dies(e, gate):
        raise RuntimeError("out of resource: shared memory\nand a long trace")

    monkeypatch.setattr(kernel, "fused", dies)
    assert choice.probe("smear_norm", CPU) == "fails on a tiny case (RuntimeError: out of resource: shared memory)"


def probed(prelude: str) -> str:
    program = "import torch; from pgolf.kernels.fused.choice import probe; print(probe('mlp', torch.device('cpu')))"
    script = f"{prelude}\n{program}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_cpu_and_a_missing_triton_are_told_apart():
    assert probed("import os; os.environ['TRITON_INTERPRET'] = '0'") == "triton compiles for GPUs alone"
    assert probed("import sys; sys.modules['triton'] = None").startswith("not installed (")


def test_choosing_on_a_cpu_imports_neither_triton_nor_the_compiler():
    script = (
        "import sys, torch; from pgolf.kernels.fused.choice import select; select('auto', torch.device('cpu')); "
        "sys.exit(any(name in sys.modules for name in ('triton', 'torch._dynamo')))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
