"""alpha-entmax against its definition, found by other means: root finding, projection, differences; and attention by
it against the whole matrix of probabilities."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from pgolf.kernels import entmax_attention as blocked
from pgolf.kernels.entmax import check_alpha, entmax, gradient, normaliser
from pgolf.kernels.entmax_attention import entmax_attention
from pgolf.kernels.packing import Packing
from pgolf.kernels.reference import reference

ALPHAS = [1.0005, 1.1, 1.25, 1.5, 1.75, 1.9, 2.0]
CUTS = torch.tensor([0, 3, 3, 9, 20], dtype=torch.int32)


def scores(rows=40, count=30, scale=1.0, seed=0):
    return torch.randn(rows, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def by_root(row, alpha):
    """p = [(alpha - 1) z - tau]_+^(1 / (alpha - 1)) with the tau that the papers define, by Brent's method."""
    scaled = (alpha - 1.0) * row

    def p(tau):
        return np.maximum(scaled - tau, 0.0) ** (1.0 / (alpha - 1.0))

    tau = brentq(lambda tau: p(tau).sum() - 1.0, scaled.max() - 1.0, scaled.max(), xtol=1e-15)
    return p(tau)


@pytest.mark.parametrize("alpha", ALPHAS[1:])
@pytest.mark.parametrize("scale", [0.05, 1.0, 10.0])
def test_it_is_the_root_of_its_definition(alpha, scale):
    z = scores(scale=scale)
    expected = np.stack([by_root(row, alpha) for row in z.numpy()])
    np.testing.assert_allclose(entmax(z, alpha).numpy(), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [1.0, *ALPHAS])
def test_probabilities_are_probabilities_whatever_is_added_to_all_scores(alpha, dtype):
    near = 2e-5 if dtype == torch.float32 else 1e-11
    equal = torch.zeros(2, 500)
    for z in (scores(), scores(scale=0.01), scores(scale=30.0), scores(count=1), equal, scores().round()):
        z = z.to(dtype)
        z[0, z.shape[1] // 2 + 1 :] = -torch.inf  # as behind a mask
        p = entmax(z, alpha)
        assert torch.isfinite(p).all() and (p >= 0.0).all() and not p[0, z.shape[1] // 2 + 1 :].any()
        torch.testing.assert_close(p.sum(-1), torch.ones(len(z), dtype=dtype), rtol=near, atol=near)
        torch.testing.assert_close(entmax(z + 3.0, alpha), p, rtol=0, atol=near)
        best = z.argmax(-1, keepdim=True)
        assert torch.equal(p.gather(-1, best)[:, 0], p.amax(-1))
        ordered = p.gather(-1, z.argsort(-1, descending=True))
        assert (ordered.diff(dim=-1) <= 0.0).all()


def test_one_is_the_softmax_and_close_to_one_close_to_it():
    z = scores(scale=3.0)
    torch.testing.assert_close(entmax(z, 1.0), z.softmax(-1))
    distances = [float((entmax(z, 1.0 + gap) - z.softmax(-1)).abs().max()) for gap in (0.1, 0.01, 0.001, 1e-5)]
    assert all(far > 5 * near for far, near in pairwise(distances)) and distances[-1] < 1e-4


def test_two_is_the_euclidean_projection_onto_the_simplex():
    """No feasible point is nearer: p - z makes no acute angle with the way to any corner, and so to any point."""
    z = scores(rows=60, count=8, scale=1.5)
    p = entmax(z, 2.0)
    ways = torch.eye(8, dtype=torch.float64) - p[:, None]  # to each corner
    assert (torch.einsum("rcn,rn->rc", ways, p - z) >= -1e-12).all()
    inside = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64)
    torch.testing.assert_close(entmax(inside, 2.0), inside)


def test_larger_alphas_give_more_zeros():
    z = scores(scale=2.0)
    kept = [int((entmax(z, alpha) > 0.0).sum()) for alpha in (1.0, 1.25, 1.5, 2.0)]
    assert kept[0] == z.numel() and all(more > fewer for more, fewer in pairwise(kept))


@pytest.mark.parametrize("alpha", [1.0, *ALPHAS])
def test_the_gradient_is_that_of_differences(alpha):
    z = scores(rows=5, count=7, scale=0.7, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: entmax(x, alpha), z)


def test_the_gradient_by_hand():
    """With alpha = 1.5, s = sqrt(p) on the support; what has no probability has no gradient."""
    z = torch.tensor([2.0, 1.5, -3.0], dtype=torch.float64)
    p, slope = entmax(z, 1.5), torch.tensor([1.0, 0.0, 5.0], dtype=torch.float64)
    a, b = p[:2].sqrt()
    assert p[2] == 0.0
    found = gradient(p, slope, 1.5)
    torch.testing.assert_close(found, torch.stack([a * (1 - a / (a + b)), -b * a / (a + b), a * 0]))


def test_normalisers_near_one_are_logarithms_of_sums():
    z = scores()
    torch.testing.assert_close(normaliser(z, 1.0), z.logsumexp(-1, keepdim=True))
    torch.testing.assert_close(normaliser(z, 1.0 + 1e-6), z.logsumexp(-1, keepdim=True), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("alpha", [0.9, 2.1, float("nan")])
def test_other_alphas_are_refused(alpha):
    with pytest.raises(ValueError, match="between 1"):
        check_alpha(alpha)


def heads(tokens=20, batch=1, dtype=torch.float64, width=4):
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(batch, tokens, count, width, generator=generator, dtype=dtype) * 1.5 for count in (4, 2, 2)]


def written_out(q, k, v, packing, alpha):
    """entmax of the whole masked matrix of scores, differentiated by torch but for `entmax` itself."""
    tokens = q.shape[1]
    k, v = (x.repeat_interleave(2, dim=2) for x in (k, v))
    visible = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    if packing is not None:
        documents = packing.document_ids(tokens)
        visible &= documents[:, None] == documents[None, :]
    found = torch.einsum("bihd,bjhd->bhij", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("bhij,bjhd->bihd", entmax(found.masked_fill(~visible, -torch.inf), alpha), v)


def packings():
    return [None, Packing.from_cu_seqlens(CUTS)]


@pytest.mark.parametrize("block", [2**22, 100])
@pytest.mark.parametrize("alpha", [1.0, 1.3, 1.5, 2.0])
@pytest.mark.parametrize("packing", packings())
def test_attention_is_that_of_the_whole_matrix(monkeypatch, packing, alpha, block):
    monkeypatch.setattr(blocked, "BLOCK", block)  # 100: one or two queries at once
    inputs = [x.requires_grad_() for x in heads(batch=1 if packing else 3)]
    slope = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    results = []
    for out in (
        entmax_attention(*inputs, packing, torch.tensor(alpha, dtype=torch.float64)),
        written_out(*inputs, packing, alpha),
    ):
        results.append([out, *torch.autograd.grad(out, inputs, slope)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_with_one_it_is_the_reference_of_softmax_attention():
    for packing in packings():
        inputs = heads()
        got = entmax_attention(*inputs, packing, torch.tensor(1.0))
        torch.testing.assert_close(got, reference(*inputs, packing))


def test_its_gradients_are_those_of_differences():
    inputs = [x.requires_grad_() for x in heads(tokens=9)]
    packing = Packing.from_cu_seqlens(CUTS[:4])
    for alpha in (1.3, 1.5, 2.0):
        number = torch.tensor(alpha, dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda *x, number=number: entmax_attention(*x, packing, number), inputs)


def test_no_token_reads_a_later_one_or_another_document():
    q, k, v = heads()
    alpha, packing = torch.tensor(1.5), Packing.from_cu_seqlens(CUTS)
    changed = [x.clone() for x in (q, k, v)]
    for x in changed:
        x[:, 14:] = 7.0
    for each in packings():
        before, after = entmax_attention(q, k, v, each, alpha), entmax_attention(*changed, each, alpha)
        torch.testing.assert_close(before[:, :14], after[:, :14], rtol=0, atol=0)
    alone = [entmax_attention(*(x[:, a:b] for x in (q, k, v)), None, alpha) for a, b in ((0, 3), (3, 9), (9, 20))]
    assert torch.equal(entmax_attention(q, k, v, packing, alpha), torch.cat(alone, dim=1))


def test_no_more_scores_than_a_block_are_there_at_once(monkeypatch):
    seen = []
    plain = blocked._scores
    monkeypatch.setattr(blocked, "_scores", lambda q, k, rows: seen.append(plain(q, k, rows)) or seen[-1])
    monkeypatch.setattr(blocked, "BLOCK", 4 * 64 * 16)  # four heads, sixteen queries
    inputs = [x.requires_grad_() for x in heads(tokens=64)]
    entmax_attention(*inputs, None, torch.tensor(1.5)).sum().backward()
    assert len(seen) == 2 * 4 and max(one.numel() for one in seen) == 4 * 64 * 16


def test_a_packing_of_another_row_is_refused():
    with pytest.raises(ValueError, match="describes one row of 20 tokens"):
        entmax_attention(*heads(tokens=12), Packing.from_cu_seqlens(CUTS), torch.tensor(1.5))


def test_torch_finds_the_operation_well_defined():
    q, k, v = (x.requires_grad_() for x in heads(tokens=9, dtype=torch.float32))
    for boundaries in (None, CUTS[:4]):
        found = torch.library.opcheck(torch.ops.pgolf.entmax_attention, (q, k, v, boundaries, torch.tensor(1.5)))
        assert set(found.values()) == {"SUCCESS"}
