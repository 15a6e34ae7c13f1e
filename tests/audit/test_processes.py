"""The score on two processes: equal where it is meant to be, and told where it is not."""

import pytest

from pgolf.audit.policies import Policies
from pgolf.audit.probe import Audit
from pgolf.audit.processes import process_check
from pgolf.audit.selftest import BENCH, SETTINGS
from pgolf.audit.specimens.ground import small_text, tiny_model
from pgolf.audit.trace import Stage
from tests.ttt.strategies import phased


def check(boundaries, smear, policies):
    strategy, _ = Audit(**SETTINGS).scope(phased({}, {"boundaries": boundaries}))
    stage = Stage(tiny_model(smear=smear), strategy, small_text(), BENCH)
    return process_check(stage, stage.run(), policies)


@pytest.mark.parametrize("smear", [False, True])
def test_rows_are_shared_out_without_a_trace(smear):
    """Also where a smear gate reads the token before a row, which another process has."""
    assert check("both", smear, Policies()).verdict == "pass"


def test_published_boundaries_depend_on_the_processes_and_a_policy_allows_it():
    strict = check("documents", False, Policies())
    assert strict.verdict == "fail" and "audit.processes=equal" in strict.detail
    assert check("documents", False, Policies(processes="any")).verdict == "allowed"
