"""Filling a budget: close from below, honest when it cannot be done."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pgolf.console import Silent
from pgolf.errors import UserError
from pgolf.quant import container
from pgolf.quant.compress import Compressor
from pgolf.quant.hessian import Calibration, collect_row_moments
from pgolf.quant.schemes import Float32, Gptq, Half, Int8Rows, Scheme, SensitivityGptq, TrellisGptq
from pgolf.quant.target import fill, first_guess, rounding_bits


class Told(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def size(factor: float) -> int:
    """A million weights whose bits fall by one an octave, and 5,000 bytes more."""
    return 5000 + round(1_000_000 * max(0.05, 3.3 - math.log2(factor)) / 8)


@pytest.mark.parametrize("guess", [1e-3, 1.0, 7.0])
@pytest.mark.parametrize("target", [100_000, 300_000, 412_345])
def test_the_target_is_filled(guess: float, target: int) -> None:
    chosen = fill(size, guess, target, 1_000_000, Silent())
    assert 0.999 * target <= size(chosen) <= target


def test_finest_steps_below_the_target_are_taken_and_said() -> None:
    console = Told()
    chosen = fill(lambda factor: min(size(factor), 600_000), 1.0, 900_000, 1_000_000, console)
    assert size(chosen) >= 600_000
    assert sum(line.startswith("steps x") for line in console.lines) <= 4  # each try quantises and packs the model
    assert any("is not filled: 600,000 bytes" in line for line in console.lines)


def test_a_target_out_of_reach_is_refused() -> None:
    with pytest.raises(UserError, match=r"quant\.target_bytes=5,000.* smallest that was made has 11,250 bytes"):
        fill(size, 1.0, 5_000, 1_000_000, Silent())


def test_first_guess_is_near() -> None:
    weight, steps = torch.randn(400, 300, generator=torch.Generator().manual_seed(0)), torch.full((400,), 0.01)
    guess = first_guess([(weight, steps)], 3.0 * weight.numel())
    assert rounding_bits(weight, steps, guess) == pytest.approx(3.0 * weight.numel(), rel=1e-3)
    # a Gaussian rounded on steps of 0.52 deviations has three bits
    assert guess * 0.01 == pytest.approx(0.517, rel=0.02)


SHAPES = {"tok_emb.weight": (300, 64), "blocks.0.weight": (128, 64), "blocks.1.weight": (64, 128), "gain": (64,)}
ROLES = {"tok_emb.weight": "embedding", "blocks.0.weight": "matrix", "blocks.1.weight": "matrix", "gain": "scalar"}


def ground() -> tuple[dict[str, torch.Tensor], dict[str, Calibration]]:
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    calibrations = {}
    for name, weight in state.items():
        if weight.ndim == 2:
            inputs = torch.randn(300, weight.shape[1], generator=generator)
            moments = torch.randn(len(weight), generator=generator).exp()
            calibrations[name] = Calibration(inputs.t() @ inputs, 300, moments)
    return state, calibrations


def compressor(scheme: Scheme, **changes: Any) -> Compressor:
    arguments: dict[str, Any] = {"matrix": scheme, "embedding": scheme, "head": None, "scalar": Half(), "gate": None}
    arguments |= {"coder": "rans", "calibration_batches": 1, "min_quantised_elements": 1}
    return Compressor(**(arguments | changes))


@pytest.mark.parametrize(
    "scheme",
    [
        Gptq(bits=6, clip_sigmas=12.85),
        SensitivityGptq(),
        SensitivityGptq(granularity="tensor"),
        TrellisGptq(segment=32),
    ],
)
def test_artifacts_fill_their_target(tmp_path: Path, scheme: Scheme) -> None:
    state, calibrations = ground()
    sizes = {}
    for target in (14_000, 22_000):
        path = tmp_path / str(target)
        report = compressor(scheme, target_bytes=target).compress(state, ROLES, calibrations, {}, path)
        sizes[target] = report["weight_bytes"]
        assert report["weight_bytes"] == path.stat().st_size
        assert 0.998 * target <= report["weight_bytes"] <= target  # a coder's block is a few bytes
        loaded, _ = container.load(path)
        assert all(loaded[name].shape == tensor.shape for name, tensor in state.items())


def test_what_cannot_be_filled_is_refused(tmp_path: Path) -> None:
    state, _ = ground()
    with pytest.raises(ValueError, match="target_bytes=null"):
        compressor(SensitivityGptq())
    with pytest.raises(ValueError, match="target_bytes=0"):
        compressor(Int8Rows(), target_bytes=0)
    with pytest.raises(UserError, match="no tensor has steps"):
        compressor(Float32(), target_bytes=10_000).compress(state, ROLES, {}, {}, tmp_path / "a")
    with pytest.raises(UserError, match=r"tok_emb\.weight was not calibrated"):
        compressor(TrellisGptq(), target_bytes=10_000).compress(state, ROLES, {}, {}, tmp_path / "a")
    assert compressor(TrellisGptq(), target_bytes=9).moment_names(SHAPES, ROLES) == list(SHAPES)[:3]


def test_row_moments_are_those_of_the_output_gradients() -> None:
    """Independent tokens: the squared gradient of the weight tells the moments of the gradients at its output."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.zeros(4, 32, requires_grad=True)
    sizes = torch.tensor([0.5, 1.0, 2.0, 0.0])
    hessian = torch.zeros(32, 32)
    runs = []
    for _ in range(40):
        inputs = torch.randn(64, 32, generator=generator)
        gradients = torch.randn(64, 4, generator=generator) * sizes
        hessian += inputs.t() @ inputs / 40
        runs.append(lambda x=inputs, g=gradients: ((x @ weight.t()) * g).sum())
    moments = collect_row_moments({"w": weight}, runs, {"w": Calibration(hessian, 64)})["w"].row_moments
    assert moments is not None
    assert moments.tolist() == pytest.approx([0.25, 1.0, 4.0, 0.0], rel=0.1)
    with pytest.raises(UserError, match="calibration_batches"):
        collect_row_moments({"w": weight}, [], {"w": Calibration(hessian, 64)})
