"""GPTQ's variants: clips that lean on the Hessian, groups of columns with finer steps."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pgolf.quant.encoded import decode
from pgolf.quant.gptq import DAMPING
from pgolf.quant.hessian import Calibration
from pgolf.quant.schemes import AwqLite, Gptq, HessianClip


def problem(rows: int = 6, cols: int = 20, seed: int = 0) -> tuple[Tensor, Calibration]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(200, cols, generator=generator) * torch.rand(cols, generator=generator)
    return torch.randn(rows, cols, generator=generator), Calibration(inputs.t() @ inputs, 200)


def test_hessian_clip_is_the_formula() -> None:
    weight, calibration = problem()
    encoded = HessianClip(bits=6, clip_sigmas=12.85, strength=0.3).quantise(weight, calibration)
    rows = weight.double().numpy()
    activity = calibration.hessian.diagonal().double().numpy()
    magnitude = np.sqrt((rows**2 * activity).sum(axis=1))
    clip = 12.85 * rows.std(axis=1, ddof=1) * (1 + 0.3 * (magnitude / magnitude.mean() - 1))
    assert encoded.parts["scales"] == pytest.approx(clip / 31, rel=1e-3)


def test_hessian_clip_without_strength_is_plain() -> None:
    weight, calibration = problem()
    plain = Gptq(bits=5, clip_sigmas=8.0).quantise(weight, calibration)
    same = HessianClip(bits=5, clip_sigmas=8.0, strength=0.0).quantise(weight, calibration)
    assert np.array_equal(plain.parts["symbols"], same.parts["symbols"])
    with pytest.raises(ValueError, match="strength"):
        HessianClip(bits=5, clip_sigmas=8.0, strength=1.0)


def test_coarser_widens_the_steps_and_nothing_else() -> None:
    weight, calibration = problem()
    for scheme in (Gptq(bits=6, clip_sigmas=10.0), HessianClip(bits=6, clip_sigmas=10.0)):
        before = scheme.quantise(weight, calibration).parts["scales"].astype(float)
        after = scheme.coarser(1.5).quantise(weight, calibration).parts["scales"].astype(float)
        assert after == pytest.approx(1.5 * before, rel=2e-3)


def protected_brute_force(weight: Tensor, calibration: Calibration, starts: list[int], size: int) -> Tensor:
    """int4 with eight bits in the groups, the remaining Hessian inverted anew for every column; dequantised."""
    hessian = calibration.hessian.double().clone()
    hessian += DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian)).double()
    remaining, result = weight.double().clone(), torch.zeros(weight.shape).double()
    deviations = weight.std(dim=1)
    order = sorted(range(len(hessian)), key=lambda j: -float(hessian[j, j]))
    for position, column in enumerate(order):
        levels = 127 if any(start <= column < start + size for start in starts) else 7
        steps = (6.0 * deviations / levels).half().double()
        inverse = torch.linalg.inv(hessian[order[position:]][:, order[position:]])
        result[:, column] = torch.round(remaining[:, column] / steps).clamp(-levels, levels) * steps
        error = (remaining[:, column] - result[:, column]) / inverse[0, 0]
        remaining[:, order[position:]] -= torch.outer(error, inverse[0])
    return result


def test_protected_groups_equal_brute_force() -> None:
    weight, calibration = problem()
    scheme = AwqLite(group_size=4).protect(Gptq(bits=4, clip_sigmas=6.0), [4, 12])
    encoded = scheme.quantise(weight, calibration)
    expected = protected_brute_force(weight, calibration, [4, 12], 4)
    wrong = (decode(encoded).double() - expected).abs() > 1e-4
    assert wrong.float().mean() <= 0.05


def test_groups_are_ranked_over_all_tensors() -> None:
    weight = torch.ones(2, 10)
    weight[:, 4:8] = 3
    activity = torch.arange(1.0, 11.0)
    calibration = Calibration(torch.diag(activity.square() * 50), 50)
    tool = AwqLite(groups=2, group_size=4)
    scores = tool.scores(weight, calibration)
    assert scores.tolist() == pytest.approx([1 + 2 + 3 + 4, 3 * (5 + 6 + 7 + 8)])
    assert tool.choose({"a": scores, "b": scores / 2, "c": scores * 0}) == {"a": [4], "b": [4]}
    assert AwqLite(groups=3, group_size=4).choose({"a": scores}) == {"a": [0, 4]}
    for arguments in ({"groups": 0}, {"group_size": 0}, {"bits": 9}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            AwqLite(**arguments)
