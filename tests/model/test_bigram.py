"""Tables of pairs and triples of tokens: rows, places of the first tokens, roles, sizes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.kernels.packing import Packing
from pgolf.model.bigram import Bigram, BigramHash
from pgolf.model.context import Context
from pgolf.model.roles import initialise, parameter_roles
from pgolf.optim.adam import AdamW
from pgolf.optim.muon import Muon
from pgolf.optim.roles import RoleOptimizers
from tests.support import tiny_model

XOR = {
    "hash": "xor",
    "primes": [36313, 27191],
    "buckets": 4096,
    "dim": 8,
    "first": "reserved",
    "bos_id": None,
    "table_std": 0.0,
    "projection_gain": 1.0,
    "scale": 0.05,
}


def rows(tokens, **changed):
    return BigramHash(16, Bigram(**{**XOR, **changed})).rows(torch.tensor(tokens)).tolist()


def test_the_published_example_of_a_row():
    assert rows([[5, 7]]) == [[4095, 1051]]  # (254191 xor 135955) mod 4095


def expected_row(tokens, t, settings):
    """The row of place t, one place at a time."""
    first = max(s for s in range(t + 1) if s == 0 or tokens[s] == settings["bos_id"])
    reserved = settings["first"] == "reserved"
    if reserved and t - first < len(settings["primes"]) - 1:
        return settings["buckets"] - 1
    total = 0
    for back, prime in enumerate(settings["primes"]):
        inside = t - back >= first
        stand_in = tokens[first] if settings["first"] == "itself" else 0
        term = prime * (tokens[t - back] if inside else stand_in)
        total = total ^ term if settings["hash"] == "xor" else total + term
    return total % (settings["buckets"] - reserved)


@given(
    st.lists(st.integers(0, 8191), min_size=1, max_size=12),
    st.fixed_dictionaries(
        {
            "hash": st.sampled_from(["xor", "sum"]),
            "primes": st.sampled_from([[36313, 27191], [2246822519, 2654435761], [36313, 27191, 51497], [1, 92821]]),
            "buckets": st.integers(2, 5000),
            "first": st.sampled_from(["itself", "zero", "reserved"]),
            "bos_id": st.sampled_from([None, 1]),
        }
    ),
    st.integers(0, 11),
)
@settings(deadline=None)
def test_rows_are_those_of_a_walk_from_the_left(tokens, settings, at):
    tokens[at % len(tokens)] = 1  # a document that begins in the row
    expected = [expected_row(tokens, t, settings) for t in range(len(tokens))]
    assert rows([tokens], **settings) == [expected]


def test_the_sum_is_scaled_and_added_before_the_norm():
    model = tiny_model(scramble=0.3, bigram=Bigram(**XOR))
    tokens = torch.tensor([[5, 7, 9]])
    part = model.bigram
    added = part.scale * (part.embed.weight[part.rows(tokens)] @ part.proj.weight.T)
    x = model.tok_emb(tokens) + added
    torch.testing.assert_close(model._embed(tokens, Context()), x / (x.square().mean(-1, keepdim=True) + 1.2e-7).sqrt())


def test_no_document_reads_its_neighbour_unless_it_is_asked_to():
    tokens, other = torch.tensor([[5, 6, 1, 8, 9]]), torch.tensor([[5, 7, 1, 8, 9]])
    for bos_id, isolated in ((1, True), (None, False)):
        part = BigramHash(16, Bigram(**{**XOR, "first": "zero", "bos_id": bos_id, "primes": [36313, 27191, 51497]}))
        assert torch.equal(part.rows(tokens)[:, 2:], part.rows(other)[:, 2:]) is isolated
        packing = Packing.from_cu_seqlens(torch.tensor([0, 2, 3, 5]))  # a piece that begins without a BOS
        rows, others = (part.rows(x, packing) for x in (tokens.clamp_min(3), tokens.clamp_min(4)))
        assert torch.equal(rows[:, 3:], others[:, 3:]) is isolated


@pytest.mark.parametrize("start", [{}, {"table_std": 1.0, "projection_gain": 0.0, "scale": None}])
def test_a_new_table_changes_nothing_and_learns(start):
    """Published with the table in no optimiser, which left it at zero for good."""
    part = BigramHash(16, Bigram(**{**XOR, **start}))
    initialise(part, 0)
    tokens, e = torch.randint(0, 64, (2, 9)), torch.randn(2, 9, 16)
    assert torch.equal(part(e, tokens), e)
    part(e, tokens).square().sum().backward()
    moving = part.embed.weight.grad if part.settings.projection_gain else part.proj.weight.grad
    assert moving.abs().sum() > 0
    model = tiny_model(bigram=Bigram(**XOR))
    assert parameter_roles(model)["bigram.embed.weight"] == "embedding"
    assert model.calibration_sites()["bigram.proj.weight"] is model.bigram.proj
    adam = lambda parameters: AdamW(parameters, lr=0.1, betas=[0.9, 0.9], eps=1e-8, weight_decay=0.0)  # noqa: E731
    optimizers = RoleOptimizers(
        model,
        matrix=lambda parameters: Muon(
            parameters,
            lr=0.1,
            momentum=0.9,
            weight_decay=0.0,
            nesterov=True,
            row_normalise=False,
            newton_schulz_steps=5,
            coefficients="stock",
        ),
        embedding=adam,
        scalar=adam,
        head=None,
        gate=None,
    )
    model.logits(model(tokens)).logsumexp(-1).sum().backward()
    before = model.bigram.embed.weight.clone()
    optimizers.step()
    assert optimizers.assignment["embedding"] == ["tok_emb.weight", "bigram.embed.weight"]
    assert model.bigram.proj.weight.std() > 0.1 and (model.bigram.embed.weight != before).any()


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"primes": [1]}, "two make pairs"),
        ({"buckets": 1}, "no row"),
        ({"projection_gain": 0.0}, "only one may be 0"),
        ({"scale": 0.0}, "only one may be 0"),
        ({"table_std": -1.0}, "table_std=-1.0 must not be negative"),
    ],
)
def test_what_cannot_work_is_refused(changed, match):
    with pytest.raises(ValueError, match=match):
        Bigram(**{**XOR, **changed})
