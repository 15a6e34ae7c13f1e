"""A run that falls behind a reference at the same steps ends; one that does not is left alone to the bit."""

import json

import pytest

from pgolf import digest
from pgolf.errors import UserError
from pgolf.train.early_stop import BehindReference
from tests.support import ALONE
from tests.train.small import losses, train


def write_reference(directory, values):
    directory.mkdir(parents=True, exist_ok=True)
    events = [{"event": "step", "step": step, "train_loss": loss} for step, loss in enumerate(values, 1)]
    lines = [json.dumps(event) for event in [{"event": "stage", "stage": "train"}, *events]]
    (directory / "metrics.jsonl").write_text("\n".join(lines) + '\n{"event": "step", "st')
    return str(directory)


def watch(reference, **changes):
    settings = {"reference": reference, "behind_nats": 0.1, "after_steps": 15, "window": 5}
    return BehindReference(**{**settings, **changes})


def test_a_run_that_is_behind_ends_with_a_state_from_which_it_can_go_on(tmp_path):
    whole = train(tmp_path / "whole", max_steps=30)
    better = write_reference(tmp_path / "better", [loss - 0.2 for loss in losses(whole[2])])
    with pytest.raises(UserError, match=r"stopped early at step 20: .* 0\.2000 nats a token above"):
        train(tmp_path / "run", max_steps=30, early_stop=watch(better))
    rest = train(tmp_path / "run", max_steps=30)
    assert losses(rest[2]) == losses(whole[2])[20:]
    assert all((rest[0][name] == whole[0][name]).all() for name in whole[0])


def test_a_run_that_keeps_up_is_the_run_without(tmp_path):
    plain = train(tmp_path / "plain", max_steps=30)
    equal = write_reference(tmp_path / "reference", [loss - 0.09 for loss in losses(plain[2])])
    watched = train(tmp_path / "run", max_steps=30, early_stop=watch(equal))
    assert losses(watched[2]) == losses(plain[2])
    assert all((watched[0][name] == plain[0][name]).all() for name in plain[0])


def test_steps_without_a_counterpart_and_short_windows_give_no_verdict(tmp_path):
    short = watch(write_reference(tmp_path / "short", [0.0] * 18))
    short.begin(ALONE)
    assert [short.reason(step, 1.0, ALONE) is not None for step in (5, 10)] == [False, False]
    for step in range(11, 19):
        assert short.reason(step, 1.0, ALONE) is None
    assert short.reason(20, 1.0, ALONE) is None  # the reference ended before


@pytest.mark.parametrize(
    "changes", [{"behind_nats": 0.0}, {"behind_nats": float("nan")}, {"window": 0}, {"after_steps": -1}]
)
def test_impossible_settings_are_refused(tmp_path, changes):
    with pytest.raises(ValueError, match="must"):
        watch(str(tmp_path), **changes)


def test_a_reference_without_steps_is_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"^reference=.*nothing has no metrics.jsonl: give the directory of a run$"):
        watch(str(tmp_path / "nothing")).refuse()
    with pytest.raises(UserError, match="give the directory of a run"):
        watch(str(tmp_path / "nothing")).begin(ALONE)
    (tmp_path / "metrics.jsonl").write_text('{"event": "summary"}\n')
    with pytest.raises(UserError, match="holds no training step"):
        watch(str(tmp_path)).begin(ALONE)


def test_watching_changes_no_digest():
    plain = {"seed": 1, "train": {"max_steps": 5, "early_stop": {"_target_": "pgolf.absent.absent"}}}
    watched = {"seed": 1, "train": {"max_steps": 5, "early_stop": {"reference": "somewhere", "behind_nats": 0.1}}}
    assert digest.digest(plain) == digest.digest(watched)
