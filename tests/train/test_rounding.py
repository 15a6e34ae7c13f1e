"""Training with rounded weights: when it comes on, what it changes, and how it goes on after a stop."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from pgolf.errors import UserError
from pgolf.optim.schedule import Warmdown
from pgolf.quant.compress import Compressor
from pgolf.quant.qat import LateQat, WeightRounding
from pgolf.quant.schemes import Float32, Gptq, Half, Int8Rows
from pgolf.train.clock import BudgetClock
from pgolf.train.rounding import Plan, planned, refuse_few_steps
from tests.support import tiny_model
from tests.train.small import Spoken, Ticking, losses, train

SEED = 1


def rounding_of(model: Any, min_steps: int = 5, **when: Any) -> WeightRounding:
    """Two-bit matrices from half of the budget on: rough enough to be seen."""
    moment = when or {"at_fraction": 0.5}
    rule = LateQat(**{"below_lr_scale": None, "at_fraction": None, **moment}, min_steps=min_steps, roles=["matrix"])
    schemes: dict[str, Any] = {"matrix": Gptq(bits=2, clip_sigmas=1.5), "embedding": Int8Rows(), "head": None}
    schemes |= {"scalar": Float32(), "gate": Half()}
    tool = Compressor(**schemes, coder="zlib", calibration_batches=1, min_quantised_elements=1, qat=rule)
    made = tool.training(model, lambda names, moments: {})
    assert made is not None
    return made


def run(folder: Path, **changes: Any) -> tuple[Any, Any, list[dict[str, Any]], list[dict[str, Any]], Any]:
    """Train with rounding; also gives the events of rounding."""
    model, told = tiny_model(seed=SEED), list[dict[str, Any]]()
    when = changes.pop("when", {})
    changes["rounding"] = rounding_of(model, **when)
    on = lambda event: told.append(event) if event["event"] == "qat" else None  # noqa: E731
    averaged, progress, events, model = train(folder, model=model, on=on, **changes)
    return averaged, progress, events, told, model


def test_it_comes_on_in_the_middle_and_says_so(tmp_path: Path) -> None:
    console = Spoken()
    _, progress, events, told, model = run(tmp_path / "a", console=console)
    _, _, plain, _ = train(tmp_path / "b", seed=SEED)
    assert progress.rounded_at == 15
    assert losses(events)[:15] == losses(plain)[:15]
    assert losses(events)[15] > losses(plain)[15]  # the loss of rounded weights
    assert losses(events)[16:] != losses(plain)[16:]
    (event,) = told
    assert (event["state"], event["step"], event["steps_left"]) == ("on", 15, 15)
    assert event["rounded"] == "24 x gptq int2"
    assert any("weights are rounded from step 15 on, with about 15 left" in line for line in console.said)
    values = model.state_dict()["blocks.0.mlp.fc.weight"].unique()
    assert len(values) > 1000  # the weights themselves are not rounded


def test_training_answers_the_rounding(tmp_path: Path) -> None:
    """After the same steps, rounded weights are better when they were trained as such."""
    after: list[float] = []
    for name, rounding in (("with", True), ("without", False)):
        changes: dict[str, Any] = {"max_steps": 60, "schedule": Warmdown(fraction=1.0, floor=0.0)}
        folder = tmp_path / name
        found = run(folder, **changes) if rounding else train(folder, seed=SEED, **changes)
        model = found[-1]
        with rounding_of(model).applied(), torch.no_grad():
            tokens = 4 + (torch.arange(65)[None] + torch.arange(8)[:, None]) % 60
            logits = model.logits(model(tokens[:, :-1]))
            after.append(float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())))
    assert after[0] < after[1]


def test_below_a_learning_rate(tmp_path: Path) -> None:
    _, progress, _, told, _ = run(tmp_path, when={"below_lr_scale": 0.5, "at_fraction": None})
    assert progress.rounded_at == 23  # 1 - 0.5 * 0.5 of 30 steps, rounded up
    assert told[0]["state"] == "on"


@pytest.mark.parametrize("stop_after", [9, 21])
def test_a_run_that_was_stopped_continues_to_the_same_bits(tmp_path: Path, stop_after: int) -> None:
    whole, progress, events, _, _ = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", checkpoint_seconds=0.0, stop_after=stop_after)
    again, other, rest, told, _ = run(tmp_path / "cut", checkpoint_seconds=0.0)
    assert losses(rest) == losses(events)[-len(rest) :]
    assert (other.step, other.rounded_at) == (progress.step, progress.rounded_at)
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    assert len(told) == (1 if stop_after < 15 else 0)


@contextmanager
def refusal(message: str) -> Iterator[None]:
    with pytest.raises(ValueError, match=message):
        yield


def test_too_few_steps_are_refused_before_the_first(tmp_path: Path) -> None:
    message = r"comes on at step 15 and leaves 15 step\(s\) of 30, fewer than quant.qat.min_steps=16"
    with refusal(message):
        run(tmp_path, when={"at_fraction": 0.5, "min_steps": 16})
    with refusal("never comes on of 30"):
        run(tmp_path, when={"below_lr_scale": 0.05})


def timed(folder: Path, seconds_of: Any, **changes: Any) -> Any:
    clock = BudgetClock(now=seconds_of)
    budget = {"max_steps": None, "max_seconds": 60.0, "clock": clock, "console": changes.pop("console", Spoken())}
    return run(folder, **budget, **changes)


def test_a_budget_in_seconds_is_forecast_from_its_first_steps(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fewer than quant\.qat\.min_steps=1000.*steps take .* s here"):
        timed(tmp_path, Ticking(0.1), when={"at_fraction": 0.5, "min_steps": 1000})


class Slowing(Ticking):
    """Looks take a hundred times as long once a part of the budget is gone."""

    def __call__(self) -> float:
        self.seconds += self.tick if self.seconds < 29.0 else 100 * self.tick
        return self.seconds


def test_when_the_steps_that_are_left_turn_out_too_few_it_stays_off_and_says_so(tmp_path: Path) -> None:
    console = Spoken()
    when = {"at_fraction": 0.5, "min_steps": 20}
    _, progress, _, told, _ = timed(tmp_path, Slowing(0.1), when=when, console=console)
    if told[0]["state"] == "on":  # the mean of the steps before was still short
        assert progress.rounded_at is not None
    else:
        assert progress.rounded_at is None and any("quant.qat stays off" in line for line in console.said)


def test_plans() -> None:
    assert Plan(None, 30).left == 0 and Plan(10, 30).left == 20
    refuse_few_steps(Plan(10, 30), 20)
    with refusal("leaves 20"):
        refuse_few_steps(Plan(10, 30), 21)
    assert planned is not None
