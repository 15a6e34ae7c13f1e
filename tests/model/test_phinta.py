"""PhiNTA against its formula, its published draws, and in every place of a model."""

from functools import partial

import pytest
import torch

from pgolf.model.context import HEAD_SLOT, Context
from pgolf.model.lanes import ParallelResidual, TwoLane
from pgolf.model.norm import rms_norm
from pgolf.model.phi import PHI
from pgolf.model.phinta import PerBlock, PhiNTA, PreHead
from pgolf.model.roles import initialise, parameter_roles
from pgolf.optim.adam import AdamW
from pgolf.optim.muon import Muon
from pgolf.optim.roles import RoleOptimizers
from tests.support import tiny_model

TOKENS = torch.randint(4, 64, (2, 24), generator=torch.Generator().manual_seed(0))
PUBLISHED = {"rank": None, "init_scale": 1 / PHI}


def scrambled(part):
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    return part


def test_the_map_is_the_formula_with_a_and_b_untransposed():
    part = PhiNTA(16, rank=5, init_scale=1 / PHI, basis_gain=None)
    initialise(part, 3)
    scrambled(part)
    x, a, b = torch.randn(2, 7, 16), part.down.weight.T, part.up.weight.T
    assert (a.shape, b.shape) == ((16, 5), (5, 16))
    torch.testing.assert_close(part(x), x + x @ part.basis.T + (x @ a) @ b)
    assert not torch.allclose(part(x), x + x @ part.basis + (x @ a) @ b, atol=1e-2)  # rows of W are outputs


def test_sizes_and_row_norms_of_the_published_smoke():
    part = PhiNTA(64, rank=13, init_scale=1 / PHI, basis_gain=None)
    torch.manual_seed(1597)
    part.draw(torch.default_generator)
    assert sum(parameter.numel() for parameter in part.parameters()) == 1664
    assert sum(buffer.numel() for buffer in part.buffers()) == 4096
    torch.testing.assert_close(part.basis.norm(dim=1), torch.full((64,), 1 / PHI), rtol=0, atol=1e-5)
    torch.manual_seed(1597)
    uniform, down = (torch.rand(64, 64) - 0.5) * 0.1, torch.randn(64, 13) * 0.02
    assert torch.equal(part.basis, uniform / uniform.norm(dim=1, keepdim=True) * (1 / PHI))
    assert torch.equal(part.down.weight, down.T) and not part.up.weight.any()
    assert not torch.allclose(part.basis @ part.basis.T, torch.eye(64) / PHI**2, atol=0.05)  # not orthogonal
    part(torch.randn(2, 16, 64)).sum().backward()
    assert part.up.weight.grad.any() and not part.down.weight.grad.any()
    assert [PhiNTA(dim, **PUBLISHED, basis_gain=None).down.weight.shape[0] for dim in (64, 128, 512)] == [40, 79, 316]


def test_it_is_an_identity_at_the_start_only_with_a_gain_of_zero():
    bare, published, gained = (
        tiny_model(scramble=0.0, phinta=part)
        for part in (None, PreHead(**PUBLISHED), PreHead(**PUBLISHED, basis_gain=0.0))
    )
    assert not torch.allclose(published(TOKENS), bare(TOKENS), atol=0.1)
    torch.testing.assert_close(gained(TOKENS), bare(TOKENS), rtol=0, atol=0)
    gained(TOKENS)[..., 0].sum().backward()
    assert gained.phinta.basis_gain.grad.abs() > 0
    unit = PhiNTA(16, rank=5, init_scale=1 / PHI, basis_gain=1.0)
    plain = PhiNTA(16, rank=5, init_scale=1 / PHI, basis_gain=None)
    for part in (unit, plain):
        initialise(part, 3)
    assert torch.equal(unit(torch.ones(1, 16)), plain(torch.ones(1, 16)))


def test_before_the_head_it_follows_the_final_norm_and_feeds_logits_and_adapters():
    model = tiny_model(scramble=0.3, phinta=PreHead(**PUBLISHED))
    without = tiny_model(scramble=0.3)
    without.load_state_dict({name: value for name, value in model.state_dict().items() if "phinta" not in name})
    hidden = without(TOKENS)
    torch.testing.assert_close(hidden, rms_norm(hidden), rtol=1e-5, atol=1e-5)  # it has been normed
    torch.testing.assert_close(model(TOKENS), model.phinta(hidden))
    seen = {}

    class OnHead:
        def delta(self, slot, site, x):
            if slot == HEAD_SLOT:
                seen[site] = x

    context = Context(adapters=OnHead())
    model.logits(model(TOKENS, context), context)
    torch.testing.assert_close(seen["head"], model.phinta(hidden))


@pytest.mark.parametrize("lanes", [None, partial(ParallelResidual, start_layer=2)])
def test_in_blocks_it_is_the_last_statement_of_every_visit(lanes):
    model = tiny_model(scramble=0.3, phinta=PerBlock(**PUBLISHED), lanes=lanes)
    model.set_plan("looped")
    outputs = []
    for block in model.blocks:
        block.phinta.register_forward_hook(lambda module, given, result: outputs.append((module, given[0], result)))
        block.register_forward_hook(lambda module, given, result: outputs.append((module, result)))
    model(TOKENS)
    calls = [(outputs[i], outputs[i + 1]) for i in range(0, len(outputs), 2)]
    assert len(calls) == len(model.plan.passes) and model.phinta is None
    for (part, given, result), (block, left) in calls:
        assert block.phinta is part and left is result
        torch.testing.assert_close(result, given + given @ part.basis.T + part.up(part.down(given)))


def test_each_of_two_lanes_goes_through_it():
    model = tiny_model(
        scramble=0.3, phinta=PerBlock(**PUBLISHED), lanes=partial(TwoLane, start_layer=3, final_lane="mean")
    )
    seen = []
    model.blocks[3].phinta.register_forward_hook(lambda module, given, result: seen.append(result))
    model(TOKENS)
    assert len(seen) == 2 and not torch.equal(*seen)


def test_the_frozen_map_is_nowhere_but_in_the_model():
    model, again = (tiny_model(seed=5, phinta=PerBlock(**PUBLISHED)) for _ in range(2))
    assert not any("basis" in name for name in [*model.state_dict(), *parameter_roles(model)])
    bases = [block.phinta.basis for block in model.blocks]
    assert all(torch.equal(one, block.phinta.basis) for one, block in zip(bases, again.blocks, strict=True))
    assert not torch.equal(bases[0], bases[1])
    other = tiny_model(seed=6, phinta=PerBlock(**PUBLISHED))
    assert not torch.equal(bases[0], other.blocks[0].phinta.basis)


@pytest.mark.parametrize("kind", [PreHead, PerBlock])
def test_its_matrices_are_in_one_optimiser_each_and_move(kind):
    model = tiny_model(scramble=0.3, phinta=kind(**PUBLISHED, basis_gain=1.0))
    matrices = partial(
        Muon,
        lr=0.02,
        momentum=0.9,
        weight_decay=0.0,
        nesterov=True,
        row_normalise=True,
        newton_schulz_steps=5,
        coefficients="stock",
    )
    adam = partial(AdamW, lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    optimizers = RoleOptimizers(model, matrix=matrices, embedding=adam, scalar=adam, head=None, gate=None)
    owned = [name for names in optimizers.assignment.values() for name in names]
    assert sorted(owned) == sorted(name for name, _ in model.named_parameters())
    mine = {name: value.detach().clone() for name, value in model.named_parameters() if "phinta" in name}
    logits = model.logits(model(TOKENS))
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), TOKENS.flatten()).backward()
    optimizers.step()
    assert len(mine) == 3 * (1 if kind is PreHead else 4)
    assert all(not torch.equal(model.get_parameter(name), value) for name, value in mine.items())


def test_calibration_finds_its_matrices():
    model = tiny_model(phinta=PreHead(**PUBLISHED))
    sites = model.calibration_sites()
    assert sites["phinta.down.weight"] is model.phinta.down and sites["phinta.up.weight"] is model.phinta.up


@pytest.mark.parametrize("rank", [0, 33])
def test_a_rank_that_the_width_does_not_hold_is_refused(rank):
    with pytest.raises(ValueError, match="phinta.rank"):
        tiny_model(phinta=PreHead(rank=rank, init_scale=0.5))
