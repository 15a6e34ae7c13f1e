"""The choice of a back end: what works is taken, what does not is refused with its reason."""

import subprocess
import sys

import pytest
import torch

from pgolf.errors import UserError
from pgolf.kernels import attend
from pgolf.kernels.reference import reference

CPU = torch.device("cpu")


def test_auto_picks_a_back_end_that_works_here():
    name, function = attend.select("auto", CPU)
    assert attend.probe(name, CPU) == ""
    assert (name, function) == ("sdpa", attend.sdpa)  # on a CPU nothing else has gradients


@pytest.mark.parametrize("name", ["flash3", "flash2"])
def test_a_library_that_is_missing_is_refused_by_name(name):
    with pytest.raises(UserError, match=f"kernels={name} cannot be used on cpu: not installed.*kernels=auto"):
        attend.select(name, CPU)


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(UserError, match="flash9 is unknown: choose auto or one of flash3, flash2, varlen, flex, sdpa"):
        attend.select("flash9", CPU)


def test_flex_and_varlen_say_why_a_cpu_is_not_enough():
    with pytest.raises(UserError, match="no backward on a CPU"):
        attend.select("flex", CPU)
    with pytest.raises(UserError, match="no CPU kernel"):
        attend.select("varlen", CPU)


@pytest.mark.parametrize("name", list(attend.NOT_ON_CPU))
def test_what_is_said_about_the_cpu_is_true(monkeypatch, name):
    monkeypatch.setattr(attend, "NOT_ON_CPU", {})
    assert "fails on a tiny case (NotImplementedError" in attend.probe(name, CPU, torch.bfloat16)


def test_choosing_on_a_cpu_does_not_import_the_compiler():
    script = (
        "import sys, torch; from pgolf.kernels.attend import select; select('auto', torch.device('cpu')); "
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_available_back_end_passes_its_probe_in_both_precisions(dtype):
    assert attend.probe("sdpa", CPU, dtype) == ""


def wrong_gradient(q, k, v, packing):
    return reference(q, k, v, packing) + (v.sum() - v.sum().detach())


@pytest.mark.parametrize(
    ("attention", "reason"),
    [
        (lambda q, k, v, packing: q * 0.5 + (k.sum() + v.sum()) * 0, "disagrees"),
        (lambda q, k, v, packing: reference(q, k, v, None), "disagrees"),  # documents see each other
        (lambda q, k, v, packing: reference(q, k, v, packing) * float("nan"), "disagrees with the reference by inf"),
        (wrong_gradient, "disagrees"),
    ],
)
def test_a_back_end_that_gives_another_answer_or_gradient_is_not_used(monkeypatch, attention, reason):
    monkeypatch.setitem(attend.BACKENDS, "flash3", lambda: attention)
    assert reason in attend.probe("flash3", CPU)
    assert attend.select("auto", CPU)[0] == "sdpa"


def test_a_back_end_that_dies_at_launch_is_not_used(monkeypatch):
    def dies(*arguments, **names):
        raise RuntimeError("no kernel image for this device\nand a long trace")

    monkeypatch.setitem(attend.BACKENDS, "flash3", lambda: dies)
    assert attend.probe("flash3", CPU) == "fails on a tiny case (RuntimeError: no kernel image for this device)"


def test_the_heads_of_the_model_are_what_is_tried(monkeypatch):
    """A library may refuse a head dimension that another one takes."""

    def picky(q, k, v, packing):
        if q.shape[3] % 8:
            raise RuntimeError("head dimension must be a multiple of 8")
        return reference(q, k, v, packing)

    monkeypatch.setitem(attend.BACKENDS, "flash3", lambda: picky)
    assert attend.select("auto", CPU)[0] == "flash3"
    assert attend.select("auto", CPU, heads=(6, 3, 16))[0] == "flash3"
    assert attend.select("auto", CPU, heads=(6, 3, 12))[0] == "sdpa"
    with pytest.raises(UserError, match="kernels=flash3 cannot be used on cpu.*multiple of 8"):
        attend.select("flash3", CPU, heads=(2, 2, 12))


def test_where_nothing_works_the_reason_is_said(monkeypatch):
    def broken():
        raise ImportError("torch is broken")

    monkeypatch.setattr(attend, "BACKENDS", {"sdpa": broken})
    with pytest.raises(UserError, match=r"no attention back end works on cpu: not installed \(torch is broken\)"):
        attend.select("auto", CPU)
