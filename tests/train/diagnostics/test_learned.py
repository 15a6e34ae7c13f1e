"""Summaries of gains and gates over training, and the cosine between passes, against their formulas."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import cosine_similarity

from pgolf.kernels.attend import sdpa
from pgolf.model.block import Block
from pgolf.model.context import Context
from pgolf.model.gates import HeadGate
from pgolf.model.lanes import TwoLane
from pgolf.model.plan import Depth
from pgolf.train.diagnostics.learned import POINTS, Recorder, learned_names, summaries
from pgolf.train.diagnostics.passes import PassCosine
from tests.support import tiny_model
from tests.train.small import train

TOKENS = torch.randint(1, 64, (2, 24), generator=torch.Generator().manual_seed(3))


def test_rows_are_summarised_by_mean_and_bounds():
    model = tiny_model(gate=partial(HeadGate, width=12, scale=0.5, init_std=0.1), scramble=0.3)
    names = learned_names(model)
    assert "blocks.2.attn.q_gain" in names and "blocks.0.attn.gate.attn_gate_w" in names
    assert not any("c_q" in name or "tok_emb" in name for name in names)
    found = summaries(dict(model.named_parameters()), names)
    for name in names:
        value = model.get_parameter(name).detach()
        rows = value.reshape(-1, value.shape[-1])
        expected = [[float(row.mean()), float(row.min()), float(row.max())] for row in rows]
        assert found[name] == [pytest.approx(one, rel=1e-5) for one in expected]
    assert len(found["blocks.0.resid_mix"]) == 2 and len(found["skip_weights"]) == len(model.skip_weights)
    assert summaries({}, []) == {}


def test_a_large_table_is_one_row():
    assert summaries({"table": torch.arange(400.0).view(100, 4)}, ["table"]) == {"table": [[199.5, 0.0, 399.0]]}


def test_a_budget_of_any_length_has_as_many_records():
    recorder = Recorder()
    assert sum(recorder.due(step / 1000) for step in range(1000)) == POINTS
    assert sum(Recorder().due(0.0) for _ in range(1)) == 1


def test_gains_are_recorded_over_training(tmp_path):
    found = []
    _, _, _, model = train(tmp_path, max_steps=12, on=found.append)
    records = [event for event in found if event["event"] == "learned"]
    assert [event["step"] for event in records] == list(range(13))
    gains = [event["values"]["blocks.1.attn.q_gain"][0][0] for event in records]
    assert gains[0] == 2.0 and gains[-1] == pytest.approx(float(model.blocks[1].attn.q_gain.detach().mean()), rel=1e-5)
    assert len(set(gains)) > 10


def looped(**parts):
    depth = Depth(num_layers=4, loop_start=1, loop_end=2, num_loops=2, skips=True)
    model = tiny_model(depth=depth, scramble=0.1, **parts)
    model.set_plan("looped")
    return model


def test_the_cosine_is_that_of_what_successive_visits_add(monkeypatch):
    model, seen = looped(), {}
    plain = Block.forward

    def noting(self, x, x0, step, *rest):
        out = plain(self, x, x0, step, *rest)
        seen.setdefault(step.block, []).append(out - x)
        return out

    monkeypatch.setattr(Block, "forward", noting)
    found = PassCosine(every=5).measure(model, lambda: model(TOKENS, Context(sdpa)))
    assert set(found) == {"1", "2"}
    for block, cosines in found.items():
        deltas = seen[int(block)]
        assert len(deltas) == 3
        expected = [float(cosine_similarity(a, b, dim=-1).mean()) for a, b in pairwise(deltas)]
        assert cosines == pytest.approx(expected, abs=1e-6)
    assert not any(block._forward_hooks for block in model.blocks) and model.training


def test_lanes_are_measured_by_their_mean():
    model = looped(lanes=partial(TwoLane, start_layer=2, final_lane="mean"))
    found = PassCosine(every=1).measure(model, lambda: model(TOKENS, Context(sdpa)))
    assert set(found) == {"1", "2"} and all(-1.0 <= one <= 1.0 for cosines in found.values() for one in cosines)


def test_measuring_changes_no_bit_and_no_budget(tmp_path):
    found = []
    averaged, _, _, _ = train(tmp_path, max_steps=10, diagnostics=PassCosine(every=3), on=found.append)
    plain, _, _, _ = train(tmp_path, max_steps=10)
    assert all(torch.equal(averaged[name], plain[name]) for name in plain)
    records = [event for event in found if event["event"] == "passes"]
    assert [event["step"] for event in records] == [6, 9]  # recurrence begins at step 4
    assert all(set(event["cosine"]) == {"1", "2"} for event in records)


def test_an_impossible_interval_is_refused():
    with pytest.raises(ValueError, match="every=0"):
        PassCosine(every=0)
