"""However many processes share the work, the score is the same."""

import numpy as np
import pytest

from pgolf.distributed import Group
from pgolf.errors import UserError
from tests.support import ALONE, documents, run_ranks
from tests.ttt.strategies import phased, run

RANK_PROGRAM = """
import sys
import numpy as np, torch
torch.set_num_threads(1)
from pgolf import distributed
from pgolf.app.machine import leave
from pgolf.ttt.fixed import Chunked, Sliding
from tests.ttt.experts.examples import EXPERTS, STRATEGIES, repetitive
from tests.ttt.strategies import phased, run, score_first_sgd
from tests.support import documents
group = distributed.join()
strategies = {
    "phased": phased(),
    "goes_on": phased({"warm_start": True}, rows=1, chains=3, short_chunks=[[18, 4]]),
    "sliding": Sliding(sequence_tokens=16, stride=4, rows=3, windows="over_text", documents="joined"),
    "score_first": score_first_sgd(),
    "score_first_isolated": score_first_sgd(documents="isolated"),
    "packed": Chunked(sequence_tokens=8, rows=2, batch_tokens=32, documents="packed"),
    "whole_batches": Chunked(sequence_tokens=8, rows=2, batch_tokens=32, coverage="whole_batches"),
}
experts = {name: expert for name, expert in EXPERTS.items() if not name.endswith("_scored")}
for name in ("packed", "joined", "score_first_sgd", "phased"):  # those that know one document, or one joined text
    strategies[f"{name}_with_experts"] = STRATEGIES[name](experts=experts)
found = {}
for name, strategy in strategies.items():
    text = (repetitive if name.endswith("experts") else documents)([40, 38, 36, 34, 20, 18, 16, 14])
    scorer, _ = run(strategy, text, group=group)
    assert scorer.ledger.complete()
    assert group.gather(scorer.total()) == [scorer.total()] * group.world_size
    gains = scorer.gains()
    assert group.gather(gains) == [gains] * group.world_size
    assert all(gain.positions > 10 for gain in gains.values())
    found[name] = np.r_[scorer.ledger.nats, [gain.positions for gain in gains.values()]]
timed, _ = run(phased(max_seconds=1e-9), documents([40, 38, 36, 34, 20, 18, 16, 14]), group=group)
assert timed.coverage.policy == "max_seconds" and timed.total().tokens == 2 * 8 * group.world_size  # a chunk each
assert group.gather(timed.total()) == [timed.total()] * group.world_size
if group.leads:
    np.savez(sys.argv[1], **found)
group.close()
leave(0)
"""


def test_two_processes_score_like_one(tmp_path):
    program = tmp_path / "rank.py"
    program.write_text(RANK_PROGRAM)
    results = []
    for world in (1, 2):
        out = tmp_path / f"{world}.npz"
        run_ranks(program, world, out)
        results.append(np.load(out))
    for name in results[0].files:
        np.testing.assert_allclose(results[0][name], results[1][name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_more_processes_than_chains_are_refused():
    two = Group(0, 2, ALONE.device)
    with pytest.raises(UserError, match="2 processes cannot share ttt.chains=1"):
        run(phased({"warm_start": True}, chains=1), documents([20, 18]), group=two)
