"""The options of train/loss, one and several at once: accepted, or refused before any work."""

import pytest

from pgolf.app.check import problems_of
from pgolf.app.compose import Job
from pgolf.digest import digest
from tests import shipped

from .conftest import CHECKOUT, TINY

OPTIONS = sorted(path.stem for path in (CHECKOUT / "conf" / "train" / "loss").glob("*.yaml"))


def job(*overrides: str) -> Job:
    return shipped.job(*TINY, "data.source.paths=[unused]", *overrides)


def test_every_option_is_accepted_alone_and_several_together() -> None:
    digests = set()
    for choice in [*OPTIONS, "[z_loss,multi_token,linear_span,tempered_byte_weights,label_smoothing]"]:
        composed = job(f"train/loss={choice}")
        assert problems_of(composed) == []
        digests.add(digest(composed.config))
    assert len(digests) == len(OPTIONS) + 1  # no two of them are the same run
    terms = composed.config["train"]["loss"]
    assert terms["terms"].keys() == {"z", "multi_token", "linear_span"} and terms["label_smoothing"] == 0.1


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["train.loss.terms.linear_span.layer=3"], "linear span layer=3: the blocks are 0..2"),
        (["train.loss.terms.linear_span.max_span_fraction=1.0"], "a span of 64 has no room in sequences of 64 tokens"),
        (["train.loss.terms.linear_span.start=1.5"], "start=1.5"),
        (["+train.loss.terms.linear_span.lambda=0.1"], "lambda"),
        (["+train.loss.label_smooth=0.1"], "label_smooth"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(overrides: list[str], sentence: str) -> None:
    problems = problems_of(job("train/loss=linear_span", *overrides))
    assert len(problems) == 1 and sentence in problems[0], problems


def test_heads_need_an_optimiser() -> None:
    problems = problems_of(job("train/loss=multi_token", "optim.head=null"))
    assert len(problems) == 1 and "training_only.multi_token.ahead_1" in problems[0], problems
