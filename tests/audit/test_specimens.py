"""What is known to be bad fails its own check; what is known to be good fails none."""

import pytest

from pgolf.audit.checks import CLAIMS, failed, table
from pgolf.audit.selftest import BAD_ARTIFACTS, BAD_STRATEGIES, GOOD_STRATEGIES, Tried, judge, probe, self_test
from pgolf.audit.specimens.good import configurations
from pgolf.audit.specimens.texts import BAD_TEXTS
from pgolf.console import Silent


@pytest.mark.parametrize("name", BAD_STRATEGIES)
def test_a_bad_strategy_fails_its_own_check(name):
    strategy, expected, policies = BAD_STRATEGIES[name]
    checks = probe(strategy, smear=True, **policies)
    assert expected in failed(checks), checks
    assert table(checks)["verdict"] == "fail"


@pytest.mark.parametrize("name", GOOD_STRATEGIES)
def test_legal_adaptation_of_a_users_own_fails_none(name):
    checks = probe(GOOD_STRATEGIES[name])
    assert failed(checks) == [] and table(checks)["verdict"] == "pass", checks


@pytest.mark.parametrize(
    ("name", "strategy"), list(configurations(20)), ids=lambda value: value if isinstance(value, str) else ""
)
def test_no_false_alarm_on_random_legal_configurations(name, strategy):
    checks = probe(strategy)
    assert failed(checks) == [] and table(checks)["verdict"] == "pass", checks


def test_every_check_has_a_specimen_that_it_alone_must_catch():
    expected = {entry[1] for entry in [*BAD_STRATEGIES.values(), *BAD_TEXTS.values()]} | {"D6"}
    assert expected == set(CLAIMS) and BAD_ARTIFACTS


def test_texts_and_artifacts_are_judged_right(tmp_path, monkeypatch):
    monkeypatch.setattr("pgolf.audit.selftest.BAD_STRATEGIES", {})
    monkeypatch.setattr("pgolf.audit.selftest.GOOD_STRATEGIES", {})
    result = self_test(tmp_path, Silent(), random_configurations=0)
    assert result["verdict"] == "pass", result
    tried = {one["name"]: one["caught"] for one in result["specimens"]}
    assert len(tried) == len(BAD_TEXTS) + len(BAD_ARTIFACTS) + 3
    assert tried["validation files read by a strategy"] == ["C2b"]
    assert tried["byte sidecar off by one"] == ["B1"] and tried["scales calibrated on validation"] == ["D6"]


def test_a_specimen_caught_by_another_check_alone_is_a_failure_of_the_audit():
    checks = probe(GOOD_STRATEGIES["online cache of pairs"])
    assert judge("bad", "C1a", checks) == Tried("bad", "C1a", [], right=False)
    assert judge("good", "", checks).right
    spoiled = probe(BAD_STRATEGIES["tail dropped"][0])
    assert not judge("bad", "C1a", spoiled).right and not judge("good", "", spoiled).right
