"""The probes pass what is legal and catch what is not, each bad strategy for its own reason."""

import copy

import numpy as np
import pytest
import torch

from pgolf.audit.checks import CLAIMS, Check, failed, not_probed, table
from pgolf.audit.probe import Audit
from pgolf.audit.specimens.bad_strategies import LooksAhead
from pgolf.console import Silent
from pgolf.kernels.attend import sdpa
from pgolf.score.scorer import Scorer, Window
from pgolf.ttt.fixed import Chunked, Sliding
from pgolf.ttt.strategy import Bench, window_log_probs
from tests.support import ALONE, documents, tiny_model
from tests.ttt.strategies import phased, score_first_sgd

BENCH = Bench(0, sdpa, Silent())
AUDIT = Audit(documents=4, max_tokens=60, flips=3)
LEGAL = {
    "chunked": Chunked(sequence_tokens=32, rows=2),
    "sliding": Sliding(sequence_tokens=32, stride=8, rows=2),
    "adapters": phased(phases=0),
    "phased": phased(prefix_docs=3),
    "sliding over the joined text": Sliding(
        sequence_tokens=32, stride=8, rows=2, windows="over_text", documents="joined"
    ),
    "chunked in packed rows": Chunked(sequence_tokens=16, rows=1, batch_tokens=32, documents="packed"),
    "score-first SGD": score_first_sgd(),
    "score-first SGD in documents": score_first_sgd(documents="isolated"),
    "adapters that go on": phased({"warm_start": True}, rows=1, chains=1, prefix_docs=3, order="file"),
    "eager": phased({"lr": 0.1}, {"lr": 0.5}, prefix_docs=4, chunk=4, rows=1),
}


def looped():
    model = tiny_model(scramble=0.1)
    model.set_plan("looped")
    return model


def probe(strategy, validation=None, model=None):
    return AUDIT.run(model or looped(), strategy, validation or documents([80, 70, 66, 20]), BENCH)


@pytest.mark.parametrize("name", LEGAL)
def test_legal_strategies_pass_every_check_and_leave_the_model_as_it_was(name):
    model, before = looped(), looped().state_dict()
    checks = probe(LEGAL[name], model=model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [check.id for check in checks] == [identity for identity in CLAIMS if identity != "D6"]
    assert [check for check in checks if check.verdict == "fail"] == []
    assert {check.id for check in checks if check.verdict == "allowed"} <= {"C1c", "C1d"}
    assert {check.id for check in checks if check.verdict == "not probed"} == {"M1", "B2"}
    assert all((check.probed > 0) == (check.verdict != "not probed") for check in checks)
    assert table(checks)["verdict"] == "pass"


def test_the_sample_exercises_a_global_phase():
    """However large a batch and an SGD chunk are, the probed procedure trains the model between documents."""
    large = phased(rows=64, prefix_docs=2000, sgd_changes={"chunk_tokens": 4096, "sequence_tokens": 2048})
    small, scope = AUDIT.scope(large)
    assert "SGD steps of 32 tokens" in scope
    model = looped()
    scorer = Scorer(documents([80, 70, 66, 20]), ALONE)
    small.run(model, scorer, BENCH)
    assert scorer.ledger.per_document()["phase"].max() >= 1
    untouched = tiny_model(scramble=0.1)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), untouched.parameters(), strict=True))


def test_a_byte_count_that_is_off_fails():
    validation = documents([80, 70, 66, 20])
    validation.token_bytes[5] += 1
    failed = [check.id for check in probe(LEGAL["chunked"], validation) if check.verdict == "fail"]
    assert failed == ["B1"]


def test_a_byte_count_that_is_off_far_behind_the_sample_fails():
    validation = documents([80, 70, 66, 20, 30, 90])
    validation.token_bytes[-1] += 7
    assert failed(probe(LEGAL["chunked"], validation)) == ["B1"]


def test_a_strategy_that_inherits_is_probed_as_itself():
    class Cheat(type(LEGAL["phased"])):
        def run(self, model, scorer, bench):
            LooksAhead().run(model, scorer, bench)

    cheat = copy.copy(LEGAL["phased"])
    cheat.__class__ = Cheat
    assert {check.id for check in probe(cheat) if check.verdict == "fail"} >= {"C1a", "C1b"}


def test_noise_does_not_hide_a_leak():
    class Noisy:
        def run(self, model, scorer, bench):
            with torch.no_grad():
                model.tok_emb.weight.add_(torch.randn_like(model.tok_emb.weight))
            LEGAL["chunked"].run(model, scorer, bench)

    checks = {check.id: check for check in probe(Noisy())}
    assert checks["C1a"].verdict == "fail" and "repeated moves" in checks["C1a"].detail


def test_entries_that_no_distribution_stands_behind_fail():
    class Forger:
        def run(self, model, scorer, bench):
            for document in range(scorer.num_documents):
                start, end = scorer.span(document)
                scorer.ledger.write(document, start + 1, np.zeros(end - start - 1), 0)

    class HalfForger:
        def run(self, model, scorer, bench):
            window = Window(0, 0, 1, 30)
            with torch.no_grad():
                scorer.score([window], window_log_probs(model, scorer, [window], bench.attention))
            for document in range(scorer.num_documents):
                start, end = scorer.span(document)
                start = 30 if document == 0 else start + 1
                scorer.ledger.write(document, start, np.zeros(end - start), 0)

    checks = {check.id: check.verdict for check in probe(HalfForger())}
    assert checks["C2b"] == "fail"
    assert table(probe(Forger()))["verdict"] == "fail"


@pytest.mark.parametrize("name", ["chunked", "sliding"])
def test_short_samples_still_have_several_windows(name):
    strategy = {
        "chunked": Chunked(sequence_tokens=2048, rows=8),
        "sliding": Sliding(sequence_tokens=2048, stride=64, rows=8),
    }
    small, scope = AUDIT.scope(strategy[name])
    assert small.sequence_tokens < 60 and "48 tokens" in scope


def test_leaving_batches_out_by_name_is_no_pass():
    strategy = Chunked(sequence_tokens=16, rows=2, batch_tokens=32, coverage="whole_batches")
    assert failed(probe(strategy)) == ["M2"]
    lenient = Audit(documents=4, max_tokens=60, flips=1, coverage="as_declared")
    model = looped()
    checks = {c.id: c for c in lenient.run(model, strategy, documents([80, 70, 66, 20]), BENCH)}
    assert checks["M2"].verdict == "allowed" and "whole_batches" in checks["M2"].detail


def test_nothing_probed_is_not_a_pass():
    assert table([])["verdict"] == "fail"
    assert table([not_probed("C1a", "why")])["verdict"] == "fail"
    essential = [identity for identity, claim in CLAIMS.items() if claim.essential]
    passed = [Check(identity, "pass", 1, 0.0, "") for identity in essential]
    assert table(passed)["verdict"] == "pass" and table(passed[1:])["verdict"] == "fail"
    assert table([*passed, not_probed("M1", "why")])["verdict"] == "pass"
    assert table([*passed, Check("M1", "allowed", 1, 0.0, "")])["verdict"] == "pass"
    assert table([*passed, Check("M1", "fail", 1, 0.0, "")])["verdict"] == "fail"
