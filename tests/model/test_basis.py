"""Matrices made of factors and frozen random ones: formulas, bytes, places, and what finds them."""

from functools import partial

import pytest
import torch

from pgolf.model.basis import LowRank, Orthogonal, RandomPlusLowRank, RandomRows, orthogonal_factor
from pgolf.model.context import Context
from pgolf.model.flops import flops_per_token
from pgolf.model.mlp import SwiGLU
from pgolf.model.repeats import OwnDown, OwnMlp
from pgolf.model.roles import parameter_roles
from pgolf.train.diagnostics.liveness import dead_parameters
from pgolf.ttt.lora import BatchedLora, LoraSettings
from tests.model.test_flops import counted, no_attention
from tests.support import tiny_model
from tests.train.diagnostics.test_liveness import losing
from tests.train.small import optimisers

MLPS = {"rank": 6, "patterns": ["blocks.*.mlp.*"]}
KINDS = [LowRank, RandomPlusLowRank, RandomRows]
TOKENS = torch.randint(4, 64, (2, 24), generator=torch.Generator().manual_seed(0))


def matrix_of(module):
    """The whole matrix [out, in] that a replaced map multiplies with, by its formula."""
    product = 0
    if hasattr(module, "down"):
        a, b = module.down.weight.T, module.up.weight.T
        product = (a @ b).T
    if not hasattr(module, "basis"):
        return product
    return module.basis + product if hasattr(module, "down") else module.up.weight @ module.basis


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_computes_what_it_would_with_the_whole_matrices(kind):
    model, dense = tiny_model(scramble=0.3, basis=kind(**MLPS)), tiny_model(scramble=0.3)
    state = {name: value for name, value in model.state_dict().items() if ".mlp." not in name}
    for layer, block in enumerate(model.blocks):
        state |= {f"blocks.{layer}.mlp.{name}.weight": matrix_of(getattr(block.mlp, name)) for name in ("fc", "proj")}
    dense.load_state_dict(state)
    torch.testing.assert_close(model(TOKENS), dense(TOKENS), rtol=1e-3, atol=1e-3)


def test_how_the_factors_begin():
    mlp = tiny_model(basis=LowRank(**MLPS)).blocks[0].mlp
    for part in (mlp.fc.down, mlp.proj.down):
        torch.testing.assert_close(part.weight @ part.weight.T, torch.eye(6))
    torch.testing.assert_close(mlp.fc.up.weight.T @ mlp.fc.up.weight, torch.eye(6))
    assert not mlp.proj.up.weight.any()  # the stream begins untouched
    mlp = tiny_model(dim=128, basis=RandomPlusLowRank(**MLPS)).blocks[0].mlp
    for part in (mlp.fc, mlp.proj):
        assert part.basis.std().item() == pytest.approx(part.basis.shape[1] ** -0.5, rel=0.05)
        assert part.down.weight.std().item() == pytest.approx(0.01, rel=0.1) and not part.up.weight.any()
    mlp = tiny_model(basis=RandomRows(**MLPS)).blocks[0].mlp
    torch.testing.assert_close(mlp.fc.up.weight.T @ mlp.fc.up.weight, torch.eye(6))
    assert not mlp.proj.up.weight.any() and not mlp.fc.basis.equal(mlp.proj.basis)


def test_published_sizes_and_what_is_saved():
    with torch.device("meta"):
        model = tiny_model(dim=512, basis=LowRank(rank=128, patterns=["blocks.*.mlp.*"]))
    assert sum(parameter.numel() for parameter in model.blocks[0].mlp.parameters()) == 393_216  # of 1,048,576


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_parts_are_drawn_again_and_stored_nowhere(kind):
    model, again = (tiny_model(seed=4, basis=kind(**MLPS)) for _ in range(2))
    bases = {name: value for name, value in model.named_buffers() if "basis" in name}
    assert len(bases) == (0 if kind is LowRank else 8)
    assert all(value.equal(again.get_buffer(name)) for name, value in bases.items())
    assert len({float(value.sum()) for value in bases.values()}) == len(bases)
    assert not any("basis" in name for name in [*model.state_dict(), *parameter_roles(model)])
    assert {parameter_roles(model)[name] for name in model.state_dict() if ".mlp." in name} == {"matrix"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plan", ["plain", "looped"])
def test_operations_are_those_that_torch_counts(kind, plan):
    model = tiny_model(basis=kind(**MLPS))
    flops = flops_per_token(model, model.plans[plan], TOKENS.shape[1])
    assert flops.blocks + flops.head == counted(model, plan, no_attention)


@pytest.mark.parametrize("kind", KINDS)
def test_calibration_reads_the_inputs_of_every_trained_factor(kind):
    model = tiny_model(scramble=0.3, basis=kind(**MLPS))
    matrices = {name for name in model.state_dict() if ".mlp." in name}
    sites = model.calibration_sites()
    assert matrices <= sites.keys()
    seen = {}
    for name in matrices:
        sites[name].register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
    model(TOKENS)
    assert all(seen[name].shape[-1] == model.get_parameter(name).shape[1] for name in matrices)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_documents_attach_as_ever(kind):
    model = tiny_model(scramble=0.3, basis=kind(rank=6, patterns=["blocks.*.mlp.*", "blocks.*.attn.c_q"]))
    settings = LoraSettings(
        rank=2, alpha=2.0, targets=["q", "mlp"], lr=0.1, beta1=0.0, beta2=0.9, epsilon=1e-10, weight_decay=0.0
    )
    adapters = BatchedLora(model, 2, settings, 0, "test")
    context = Context(adapters=adapters)
    torch.testing.assert_close(model(TOKENS, context), model(TOKENS))
    logits = model.logits(model(TOKENS, context), context)
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), TOKENS.flatten()).backward()
    assert all(up.grad.any() for up in adapters.up.values())


def test_patterns_choose_any_linear_map_and_no_gate():
    model = tiny_model(basis=LowRank(rank=6, patterns=["*.c_q", "*.proj"]), mlp=partial(SwiGLU, multiple=2.0))
    names = {name.rpartition(".down")[0] for name in model.state_dict() if ".down." in name}
    assert names == {f"blocks.{layer}.{name}" for layer in range(4) for name in ("attn.c_q", "attn.proj", "mlp.proj")}
    with pytest.raises(ValueError, match="match no linear map"):
        tiny_model(basis=LowRank(rank=6, patterns=["*.nothing"]))


@pytest.mark.parametrize("own", [OwnMlp, OwnDown])
def test_repeated_visits_begin_as_copies_of_factors_but_not_of_frozen_parts(own):
    model = tiny_model(scramble=0.3, basis=LowRank(**MLPS), repeat_mlp=own)
    begun = model.begin_plan("looped")
    assert len(begun) == (8 if own is OwnMlp else 4)
    assert all(model.get_parameter(name).equal(model.get_parameter(source)) for name, source in begun.items())
    with pytest.raises(ValueError, match="repeat_mlp has to be none"):
        tiny_model(basis=RandomRows(**MLPS), repeat_mlp=own)


@pytest.mark.parametrize(
    ("own", "pattern"),
    [(OwnMlp, "blocks.1.mlp.*"), (OwnMlp, "*.repeats.*"), (OwnDown, "blocks.?.mlp.proj"), (OwnMlp, "blocks.?.mlp.fc")],
)
def test_repeated_visits_that_are_made_otherwise_than_their_blocks_are_refused(own, pattern):
    for basis in (LowRank(rank=6, patterns=[pattern]), Orthogonal(patterns=[pattern], cap=None)):
        with pytest.raises(ValueError, match="and not of both"):
            tiny_model(basis=basis, repeat_mlp=own)
    tiny_model(basis=LowRank(rank=6, patterns=["blocks.0.mlp.*"]), repeat_mlp=own)  # which is visited once


def test_a_rank_that_saves_nothing_is_refused():
    with pytest.raises(ValueError, match="2,112 elements in place of 2,048"):
        tiny_model(basis=LowRank(rank=22, patterns=["blocks.*.mlp.fc"]))
    with pytest.raises(ValueError, match="at least 1"):
        LowRank(rank=0, patterns=["*"])


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_the_orthogonal_factor_is_that_of_the_singular_value_decomposition(shape):
    weight = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 7).requires_grad_()
    left, _, right = torch.linalg.svd(weight.detach(), full_matrices=False)
    factor = orthogonal_factor(weight)
    torch.testing.assert_close(factor, left @ right, rtol=0, atol=1e-4)
    factor.square().sum().backward()
    assert weight.grad.abs().max() < 1e-4  # the sum of squared singular values cannot move


def test_orthogonal_maps_have_one_singular_value_which_a_cap_bounds():
    mlps = {"patterns": ["blocks.*.mlp.*"]}
    model, plain = tiny_model(basis=Orthogonal(**mlps, cap=None)), tiny_model()
    assert [part.gain.item() for part in (model.blocks[0].mlp.fc, model.blocks[0].mlp.proj)] == [1.0, 0.0]
    torch.testing.assert_close(model(TOKENS), plain(TOKENS), rtol=1e-3, atol=1e-3)  # it begins as the plain model
    model = tiny_model(scramble=0.3, basis=Orthogonal(**mlps, cap=2.0))
    for block in model.blocks:
        for part in (block.mlp.fc, block.mlp.proj):
            with torch.no_grad():
                part.gain.fill_(9.0)
            effective = part(torch.eye(part.factor.weight.shape[1])).T
            expected = 2.0 * torch.tanh(torch.tensor(4.5))
            torch.testing.assert_close(torch.linalg.svdvals(effective), expected.expand(min(effective.shape)))
    assert not model.blocks[0].mlp.fusable
    assert model.calibration_sites()["blocks.0.mlp.fc.factor.weight"] is model.blocks[0].mlp.fc.factor
    learning = tiny_model(scramble=0.3, basis=Orthogonal(**mlps, cap=None))
    assert dead_parameters(learning, optimisers(learning), losing(learning)) == []
    with pytest.raises(ValueError, match="basis.cap"):
        Orthogonal(**mlps, cap=0.0)


def test_a_model_with_orthogonal_maps_is_one_graph():
    model = tiny_model(scramble=0.2, num_layers=1, num_loops=0, basis=Orthogonal(patterns=["*.mlp.*"], cap=2.0))
    torch._dynamo.reset()
    compiled = torch.compile(lambda tokens, context: model(tokens, context), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(TOKENS, Context()), model(TOKENS), rtol=1e-4, atol=1e-4)
