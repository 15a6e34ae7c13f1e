"""Low-rank corrections: the best approximation, a sign that is pinned, exact arithmetic when it is loaded."""

import numpy as np
import pytest
import torch

from pgolf.quant.encoded import decode
from pgolf.quant.schemes import Half, Int8Rows, Lqer
from pgolf.quant.schemes.lqer import leading_factors, pack_asymmetric, pack_symmetric


def matrix(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def test_factors_are_the_best_approximation_and_their_sign_is_pinned() -> None:
    error = matrix(12, 9)
    left, right = leading_factors(error, 3)
    values = np.linalg.svd(error.double().numpy(), compute_uv=False)
    assert float((error - left @ right).norm()) == pytest.approx(np.sqrt((values[3:] ** 2).sum()), rel=1e-5)
    for column in left.t():
        assert column[column.abs().argmax()] < 0
    mirrored, _ = leading_factors(-error, 3)
    assert torch.allclose(mirrored.abs(), left.abs(), atol=1e-5)
    assert leading_factors(error[:2], 5)[0].shape == (2, 2)


def test_asymmetric_packing_equals_brute_force() -> None:
    left, right = matrix(10, 2), matrix(2, 16, 1)
    parts = pack_asymmetric(left, right, 8)
    scale = np.float16(float(left.abs().max()) / 1.5)
    assert parts["scales_a"].numpy() == scale
    expected = [[max(-2, min(1, round(v / float(scale)))) for v in row] for row in left.tolist()]
    assert parts["factor_a"].tolist() == expected
    for index, group in enumerate(right.reshape(-1, 8).tolist()):
        scale = float(np.float16(max(map(abs, group)) / 7.5))
        assert float(parts["scales_b"][index]) == scale
        expected_group = [max(-8, min(7, round(v / scale))) for v in group]
        assert parts["factor_b"].reshape(-1, 8)[index].tolist() == expected_group


def test_the_correction_is_added_as_packed() -> None:
    weight = matrix(20, 32)
    base = Int8Rows().quantise(torch.round(weight))
    for group_size, pack in ((16, lambda a, b: pack_asymmetric(a, b, 16)), (0, lambda a, b: pack_symmetric(a, b, 4))):
        corrected = Lqer(rank=2, group_size=group_size).correct(base, weight)
        parts = pack(*leading_factors(weight - decode(base), 2))
        left, right = parts["factor_a"].float(), parts["factor_b"].float()
        left *= parts["scales_a"].float() if group_size else parts["scales_a"].float()[:, None]
        scales = parts["scales_b"].float()
        right = (right.reshape(len(scales), -1) * scales[:, None]).reshape(2, 32)
        assert torch.equal(decode(corrected), decode(base) + left @ right)
        assert (decode(corrected) - weight).norm() < (decode(base) - weight).norm()


def test_a_factor_that_does_not_fill_its_groups_is_packed_symmetrically() -> None:
    weight = matrix(6, 10)
    corrected = Lqer(rank=3, group_size=64).correct(Int8Rows().quantise(torch.round(weight)), weight)
    assert corrected.scheme == "int8 rows + lqer" and corrected.parts["scales_a"].shape == (6,)


def test_the_largest_errors_are_chosen() -> None:
    assert Lqer(tensors=2).choose({"a": 1.0, "b": 3.0, "c": 3.0, "d": 2.0}) == ["b", "c"]
    assert Lqer(tensors=9).choose({"a": 1.0}) == ["a"]


def test_refusals() -> None:
    for arguments in ({"rank": 0}, {"tensors": 0}, {"group_size": -1}, {"bits": 1}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            Lqer(**arguments)
    with pytest.raises(ValueError, match="float16"):
        Lqer().correct(Half().quantise(matrix(2, 2)), matrix(2, 2))
