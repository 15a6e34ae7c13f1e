"""Steps by sensitivity: the formula, the grid, the bounds; trellis symbols inside GPTQ."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pgolf.quant.encoded import decode, grid_steps, trellis_codebooks
from pgolf.quant.gptq import factorise
from pgolf.quant.hessian import Calibration
from pgolf.quant.schemes import SensitivityGptq, TrellisGptq


def problem(rows: int = 48, cols: int = 32, seed: int = 0) -> tuple[Tensor, Calibration]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(400, cols, generator=generator) @ torch.randn(cols, cols, generator=generator)
    moments = torch.randn(rows, generator=generator).exp()
    return torch.randn(rows, cols, generator=generator), Calibration(inputs.t() @ inputs / 400, 1, moments)


def damage(weight: Tensor, decoded: Tensor, calibration: Calibration) -> Tensor:
    """F_i e_i^T H e_i of every row."""
    error = (weight - decoded).double()
    assert calibration.row_moments is not None
    return calibration.row_moments.double() * ((error @ calibration.hessian.double()) * error).sum(dim=1)


def test_steps_are_the_formula_on_the_grid() -> None:
    weight, calibration = problem()
    scheme = SensitivityGptq(scale=3.0, smoothing=0.25)
    moments = calibration.row_moments
    assert moments is not None
    smoothed = 0.75 * moments + 0.25 * moments.mean()
    hardness = factorise(calibration.hessian).upper.diagonal().double().pow(-2).mean()
    steps = 3.0 / (smoothed.double() * hardness).sqrt()
    stored = scheme.quantise(weight, calibration).parts["steps"]
    assert stored.dtype == np.int16
    assert stored.tolist() == torch.round(16 * steps.log2()).int().tolist()
    assert grid_steps(torch.tensor([0, 16, -16, 8])).tolist() == pytest.approx([1.0, 2.0, 0.5, 2**0.5])


def test_all_rows_lose_alike_without_smoothing() -> None:
    weight, calibration = problem(rows=200)
    encoded = SensitivityGptq(scale=1.0, smoothing=0.0).quantise(weight, calibration)
    assert np.abs(encoded.parts["symbols"]).max() < 127
    lost = damage(weight, decode(encoded), calibration)
    assert lost.std() / lost.mean() < 0.5
    assert float(lost.mean()) == pytest.approx(32 / 12, rel=0.15)


def test_one_step_for_the_tensor() -> None:
    weight, calibration = problem()
    encoded = SensitivityGptq(granularity="tensor").quantise(weight, calibration)
    assert encoded.parts["steps"].shape == (1,)
    assert (
        grid_steps(torch.tensor([257])).item() == pytest.approx(2 * 2 ** (1 / 256))  # finer than those of rows
        and SensitivityGptq(granularity="tensor", scale=2 ** (1 / 256)).quantise(weight, calibration).parts["steps"]
        == encoded.parts["steps"] + 1
    )
    values = decode(encoded) / grid_steps(torch.from_numpy(encoded.parts["steps"]))
    assert torch.allclose(values, values.round(), atol=1e-5)


def test_symbols_fit_their_byte() -> None:
    weight, calibration = problem()
    encoded = SensitivityGptq(scale=1e-6).quantise(weight, calibration)
    assert np.abs(encoded.parts["symbols"].astype(int)).max() <= 127
    assert (decode(encoded) - weight).abs().max() < 0.1
    assert not decode(SensitivityGptq().quantise(torch.zeros_like(weight), calibration)).any()


def test_trellis_does_less_damage_on_the_same_steps() -> None:
    weight, calibration = problem(rows=256)
    scalar = SensitivityGptq(scale=1.0, smoothing=0.0).quantise(weight, calibration)
    trellis = TrellisGptq(scale=1.0, smoothing=0.0, segment=64).quantise(weight, calibration)
    assert np.array_equal(scalar.parts["steps"], trellis.parts["steps"])
    before, after = (float(damage(weight, decode(one), calibration).sum()) for one in (scalar, trellis))
    assert after < 0.85 * before  # 0.18 bit are a factor of 0.78
    symbols = trellis.parts["symbols"]
    offsets = trellis_codebooks(symbols, 64) / 2 - 0.25
    steps = grid_steps(torch.from_numpy(trellis.parts["steps"])).numpy()
    assert np.allclose(decode(trellis).numpy(), (symbols + offsets) * steps[:, None])


def test_coarser_widens_the_steps() -> None:
    weight, calibration = problem()
    for scheme in (SensitivityGptq(), TrellisGptq(segment=16)):
        before = scheme.quantise(weight, calibration).parts["steps"]
        after = scheme.coarser(2.0).quantise(weight, calibration).parts["steps"]
        assert (after - before).tolist() == [16] * len(before)
        assert torch.allclose(
            scheme.coarser(2.0).base_steps(weight, calibration), 2 * scheme.base_steps(weight, calibration)
        )


def test_refusals() -> None:
    weight, calibration = problem()
    for arguments in ({"scale": 0.0}, {"smoothing": 1.5}, {"block_size": 0}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            SensitivityGptq(**arguments)
    with pytest.raises(ValueError, match="segment"):
        TrellisGptq(segment=0)
    with pytest.raises(ValueError, match="Hessian"):
        SensitivityGptq().quantise(weight, None)
    with pytest.raises(ValueError, match="none were collected"):
        SensitivityGptq().quantise(weight, Calibration(calibration.hessian))
    with pytest.raises(ValueError, match="zero or not finite"):
        SensitivityGptq().quantise(weight, Calibration(calibration.hessian, 1.0, torch.zeros(48)))
