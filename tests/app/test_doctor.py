"""`pgolf doctor` on attention: every back end is tried, and what kernels=auto takes is named."""

import re
import tomllib
from pathlib import Path

import pytest
import torch

from pgolf.app.verbs import doctor
from pgolf.kernels import attend
from pgolf.kernels.fused import choice

CPU = torch.device("cpu")


def test_the_back_end_that_auto_takes_is_the_one_that_select_takes() -> None:
    findings = {one.what: one for one in doctor._attention(CPU)}
    assert list(findings) == [f"attention: {name}" for name in attend.BACKENDS]
    taken = [what for what, one in findings.items() if "kernels=auto takes it" in one.detail]
    assert taken == [f"attention: {attend.select('auto', CPU)[0]}"]
    assert findings["attention: flex"].state == "missing" and "backward" in findings["attention: flex"].detail
    assert "float32" in findings["attention: sdpa"].detail


def test_every_fused_kernel_is_listed_and_why_it_cannot_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "probe", lambda name, device: "" if name == "mlp" else "triton compiles for GPUs alone")
    findings = {one.what: one for one in doctor._fused(CPU)}
    assert list(findings) == [f"fused kernel: {name}" for name in choice.MODULES]
    assert (
        findings["fused kernel: mlp"].state == "ok"
        and "fused=auto leaves it out" in findings["fused kernel: mlp"].detail
    )
    assert findings["fused kernel: smear_norm"].detail == "triton compiles for GPUs alone"


def test_remedies_are_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attend, "probe", lambda name, device: "" if name == "sdpa" else "not installed")
    on_gpu = {one.what: one for one in doctor._attention(torch.device("cuda"))}
    assert "flash-attn" in on_gpu["attention: flash2"].remedy
    assert all(one.remedy == "" for one in doctor._attention(CPU))


def test_a_machine_without_any_back_end_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attend, "probe", lambda name, device: "fails on a tiny case")
    assert list(doctor._attention(CPU))[-1].state == "broken"


def test_every_extra_of_the_distribution_is_examined_with_the_command_that_installs_it() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    declared = {
        extra: {re.split("[<>=;]", one)[0].strip() for one in packages}
        for extra, packages in extras.items()
        if extra != "dev"
    }
    examined = {extra: set(packages) for extra, packages in doctor.EXTRAS.items()}
    assert {extra: packages - {"pillow"} for extra, packages in declared.items()} == examined
    missing = doctor._package("no-such-package", "missing", 'pip install "pgolf[x]"', "flying")
    assert (missing.state, missing.detail) == ("missing", "not installed (for flying)")
