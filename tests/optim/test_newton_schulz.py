"""The iteration: what it converges to, and where its forms round."""

import pytest
import torch

from pgolf.optim.newton_schulz import POLAR_EXPRESS, STOCK, orthogonalise, orthogonalise_by_gram


def matrix(rows, cols, decay, seed=0):
    """Singular values from 1 down to 10^-decay."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(rows, rows, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(cols, rows, generator=generator, dtype=torch.float64))[0]
    return (left * 10 ** (-decay * torch.linspace(0, 1, rows, dtype=torch.float64))) @ right.T


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 16, 6), (2, 6, 16)])
def test_polar_express_drives_singular_values_to_one(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(orthogonalise(x, 8, POLAR_EXPRESS))
    assert singular.min() > 0.8 and singular.max() < 1.2


@pytest.mark.parametrize("rounding", ["published", "early"])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("coefficients", [STOCK, POLAR_EXPRESS])
def test_all_forms_are_one_iteration_in_fp64(rounding, steps, coefficients):
    x = torch.stack([matrix(6, 16, 1, seed) for seed in range(2)])
    expected = orthogonalise(x, steps, coefficients)
    torch.testing.assert_close(orthogonalise(x, steps, coefficients, rounding), expected)
    torch.testing.assert_close(orthogonalise(x.mT, steps, coefficients, rounding), expected.mT)


@pytest.mark.parametrize("coefficients", [STOCK, POLAR_EXPRESS])
@pytest.mark.parametrize("decay", [0, 1, 2, 3])
def test_rounding_less_often_in_bf16_is_nearer_to_the_exact_result(coefficients, decay):
    x = matrix(64, 256, decay)[None]
    exact = orthogonalise(x, 5, coefficients)
    error = {
        rounding: float((orthogonalise(x.bfloat16(), 5, coefficients, rounding).double() - exact).norm() / exact.norm())
        for rounding in ("fused", "published", "early")
    }
    assert error["fused"] < min(error["published"], error["early"]) < 0.2


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("shape", [(6, 16), (16, 6), (8, 8), (8, 12), (300, 700), (700, 300)])
def test_the_gram_form_is_the_same_iteration_in_fp64(steps, shape):
    """Long and square, standing and lying; the large ones one by one, their X X^T in tiles."""
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(orthogonalise_by_gram(x, steps, STOCK), orthogonalise(x, steps, STOCK))


@pytest.mark.parametrize("coefficients", [STOCK, POLAR_EXPRESS])
@pytest.mark.parametrize("decay", [0, 1, 2, 3])
@pytest.mark.parametrize("rows", [128, 256])
def test_the_gram_form_in_bf16_errs_about_as_much_as_the_published_rounding(coefficients, decay, rows):
    """A form that shared one Gram matrix among all five iterations would be away by 2 and more at decay 3."""
    x = matrix(rows, 512, decay)[None]
    exact = orthogonalise(x, 5, coefficients)
    narrow = x.bfloat16()
    gram = float((orthogonalise_by_gram(narrow, 5, coefficients).double() - exact).norm() / exact.norm())
    published = float((orthogonalise(narrow, 5, coefficients, "published").double() - exact).norm() / exact.norm())
    assert gram < 1.8 * published and gram < 0.16


def test_large_matrices_one_by_one_are_those_of_a_batch():
    x = torch.randn(3, 300, 260, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for rounding in ("fused", "published", "early"):
        expected = torch.cat([orthogonalise(one[None, :, :], 5, STOCK, rounding) for one in x])
        torch.testing.assert_close(orthogonalise(x, 5, STOCK, rounding), expected)
        small = orthogonalise(x[:, :40, :40], 5, STOCK, rounding)
        torch.testing.assert_close(small[1], orthogonalise(x[1:2, :40, :40].clone(), 5, STOCK, rounding)[0])
