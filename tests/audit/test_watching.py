"""What the audit's own instruments see: who reads and writes, two processes in threads, optimisers that stand still."""

import copy

import numpy as np
import pytest
import torch

from pgolf.audit.figures import of_stages
from pgolf.audit.processes import WORLD_SIZE, in_threads
from pgolf.audit.recorder import Recorder, learning_frozen
from pgolf.audit.trace import Stage, difference, sample_of
from pgolf.audit.watch import WatchedScorer
from pgolf.errors import UserError
from pgolf.score.ledger import RuleBroken
from pgolf.ttt.fixed import Chunked
from tests.support import ALONE, documents, tiny_model
from tests.ttt.strategies import BENCH


def test_samples_have_documents_of_different_lengths_and_skip_empty_ones():
    sample = sample_of(documents([200, 1, 200, 200, 7]), 4, 100)
    assert np.diff(np.append(sample.document_starts, len(sample.tokens))).tolist() == [55, 85, 100, 7]
    assert sample.names == ["document 0", "document 2", "document 3", "document 4"]
    assert sample.document_bytes.tolist() == np.add.reduceat(sample.token_bytes, sample.document_starts).tolist()
    with pytest.raises(UserError, match="nothing to audit"):
        sample_of(documents([1, 1]), 2, 10)


def test_who_reads_the_text_is_noted():
    scorer = WatchedScorer(documents([10, 10]), ALONE, Recorder(torch.nn.Linear(1, 1)))
    assert scorer.span(0) == (0, 11) and not scorer.peeked
    assert len(scorer._tokens) == 20
    assert len(scorer.peeked) == 1 and "test_watching.py" in scorer.peeked.pop()
    assert vars(scorer) and len(scorer.peeked) == 1


def test_a_copied_or_edited_scorer_is_refused():
    with pytest.raises(RuleBroken, match="cannot be copied"):
        copy.copy(WatchedScorer(documents([10]), ALONE, Recorder(torch.nn.Linear(1, 1))))
    stage = Stage(tiny_model(scramble=0.1), Chunked(sequence_tokens=8, rows=2), documents([20, 12]), BENCH)
    scorer = stage.run().scorer
    with pytest.raises(ValueError, match="read-only"):
        scorer.ledger.nats[3] = 0.0
    scorer.ledger._nats[3] -= 0.1
    with pytest.raises(RuleBroken, match="edited afterwards"):
        scorer.total()


def test_threads_exchange_like_processes():
    def work(group):
        tensor = torch.full((3,), float(group.rank + 1))
        mean = tensor.clone()
        group.mean_([mean])
        total = group.sum_(tensor)
        return total.tolist(), mean.tolist(), group.from_leader(group.rank), group.largest([group.rank, 5.0])

    assert in_threads(ALONE.device, work) == [([3.0] * 3, [1.5] * 3, 0.0, [1.0, 5.0])] * WORLD_SIZE


def test_the_failure_of_one_thread_is_what_is_raised():
    def work(group):
        if group.rank == 1:
            raise ValueError("rank 1 is tired")
        group.barrier()

    with pytest.raises(ValueError, match="rank 1 is tired"):
        in_threads(ALONE.device, work)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_frozen_optimisers_step_and_change_nothing(make):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = make([weight], lr=0.1, weight_decay=0.5)
    weight.grad = torch.ones(2)
    with learning_frozen():
        optimizer.step()
    assert weight.tolist() == [1.0, 1.0] and optimizer.param_groups[0]["lr"] == 0.1
    optimizer.step()
    assert weight.tolist() != [1.0, 1.0]


def test_a_missing_position_is_the_largest_difference():
    model = tiny_model(scramble=0.1)
    one = Stage(model, Chunked(sequence_tokens=8, rows=2), documents([20, 12]), BENCH).run()
    other = Stage(model, Chunked(sequence_tokens=8, rows=2), documents([20]), BENCH).run()
    assert difference(one, one, one.positions) == 0.0
    assert difference(one, other, one.positions) == float("inf")


def test_a_strategy_that_cannot_be_copied_is_a_sentence():
    class Holding:
        def __init__(self):
            self.scorer = WatchedScorer(documents([10]), ALONE, Recorder(torch.nn.Linear(1, 1)))
            self.generator = (one for one in [])

        def run(self, model, scorer, bench):
            raise AssertionError

    holding = Holding()
    holding.scorer = None
    with pytest.raises(UserError, match="Holding cannot be copied"):
        Stage(tiny_model(), holding, documents([10]), BENCH).run()


def test_figures_that_are_not_the_sum_of_the_scores_fail(tmp_path):
    from pgolf.audit.entries import unedited

    trace = Stage(tiny_model(scramble=0.1), Chunked(sequence_tokens=8, rows=2), documents([20, 12]), BENCH).run()
    np.savez(tmp_path / "scores.npz", nats_final=np.array([60.0, 40.0]))
    stage = {"val_loss": 2.0, "tokens": 50, "val_bpb": 1.0, "coverage": {"left_out": 0}}
    right = of_stages({"final": stage, "pre_quant": {**stage, "coverage": {"left_out": 3}}}, tmp_path)
    assert list(right) == ["final"] and unedited(trace, right).verdict == "pass"
    wrong = unedited(trace, of_stages({"final": {**stage, "val_loss": 1.9}}, tmp_path))
    assert wrong.verdict == "fail" and "final reports 95.000 nats" in wrong.detail
