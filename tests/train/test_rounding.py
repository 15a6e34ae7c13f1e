"""Training with rounded weights: when it comes on, what it changes, and how it goes on after a stop."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pgolf.errors import UserError
from pgolf.optim.schedule import StepWarmdown, Warmdown
from pgolf.quant.compress import Compressor
from pgolf.quant.qat import LateQat, WeightRounding
from pgolf.quant.schemes import Float32, Gptq, Half, Int8Rows
from pgolf.train.clock import BudgetClock
from pgolf.train.loop import Trainer
from pgolf.train.rounding import Plan, Switch, refuse_few_steps
from pgolf.train.state import Progress
from tests.support import ALONE, tiny_model
from tests.train.small import SETTINGS, Spoken, Ticking, losses, train

SEED = 1
SHORT: dict[str, Any] = {"max_steps": 12, "batch_tokens": 256}


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
    changes = {**SHORT, **changes, "rounding": rounding_of(model, **when)}
    on = lambda event: told.append(event) if event["event"] == "qat" else None  # noqa: E731
    averaged, progress, events, model = train(folder, model=model, on=on, **changes)
    return averaged, progress, events, told, model


def test_it_comes_on_in_the_middle_and_says_so(tmp_path: Path) -> None:
    console = Spoken()
    _, progress, events, told, model = run(tmp_path / "a", console=console)
    _, _, plain, _ = train(tmp_path / "b", seed=SEED, **SHORT)
    assert progress.rounded_at == 6
    assert losses(events)[:6] == losses(plain)[:6]
    assert losses(events)[6] > losses(plain)[6]  # the loss of rounded weights
    assert losses(events)[7:] != losses(plain)[7:]
    (event,) = told
    assert (event["state"], event["step"], event["steps_left"]) == ("on", 6, 6)
    assert event["rounded"] == "24 x gptq int2"
    assert any("weights are rounded from step 6 on, with about 6 left" in line for line in console.said)
    values = model.state_dict()["blocks.0.mlp.fc.weight"].unique()
    assert len(values) > 1000  # the weights themselves are not rounded


def test_training_answers_the_rounding(tmp_path: Path) -> None:
    """After the same steps, rounded weights are better when they were trained as such."""
    after: list[float] = []
    for name, rounding in (("with", True), ("without", False)):
        changes: dict[str, Any] = {**SHORT, "max_steps": 40, "schedule": Warmdown(fraction=1.0, floor=0.0)}
        folder = tmp_path / name
        found = run(folder, **changes) if rounding else train(folder, seed=SEED, **changes)
        model = found[-1]
        with rounding_of(model).applied(), torch.no_grad():
            tokens = 4 + (torch.arange(65)[None] + torch.arange(8)[:, None]) % 60
            logits = model.logits(model(tokens[:, :-1]))
            after.append(float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())))
    assert after[0] < after[1]


def test_below_a_learning_rate(tmp_path: Path) -> None:
    _, progress, _, told, _ = run(tmp_path, when={"below_lr_scale": 0.5, "min_steps": 2})
    assert progress.rounded_at == 10  # after 3/4 of 12 steps the multiplier is still one half
    assert told[0]["state"] == "on"


@pytest.mark.parametrize("stop_after", [4, 8])
def test_a_run_that_was_stopped_continues_to_the_same_bits(tmp_path: Path, stop_after: int) -> None:
    whole, progress, events, _, _ = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", checkpoint_seconds=0.0, stop_after=stop_after)
    again, other, rest, told, _ = run(tmp_path / "cut", checkpoint_seconds=0.0)
    assert losses(rest) == losses(events)[-len(rest) :]
    assert (other.step, other.rounded_at) == (progress.step, progress.rounded_at)
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    assert len(told) == (1 if stop_after < 6 else 0)


def test_a_fall_by_the_clock_counts_where_steps_and_seconds_are_given() -> None:
    schedule = StepWarmdown(steps=400, max_steps=1000, max_seconds=100.0)
    trainer = Trainer(**{**SETTINGS, "max_steps": 1000, "max_seconds": 100.0, "schedule": schedule})
    course = trainer.course(["plain", "looped"])
    trainer.refuse_rounding(rounding_of(tiny_model(), min_steps=50, below_lr_scale=0.15), course)
    with pytest.raises(ValueError, match="comes on at step 9.. and leaves"):
        trainer.refuse_rounding(rounding_of(tiny_model(), min_steps=70, below_lr_scale=0.15), course)


def test_too_few_steps_are_refused_before_the_first(tmp_path: Path) -> None:
    message = r"comes on at step 6 and leaves 6 step\(s\) of 12, fewer than quant.qat.min_steps=7"
    with pytest.raises(ValueError, match=message):
        run(tmp_path, when={"at_fraction": 0.5, "min_steps": 7})
    with pytest.raises(ValueError, match="never comes on of 12"):
        run(tmp_path, when={"below_lr_scale": 0.05})


def timed(folder: Path, seconds_of: Any, **changes: Any) -> Any:
    clock = BudgetClock(now=seconds_of)
    budget = {"max_steps": None, "max_seconds": 60.0, "clock": clock, "console": changes.pop("console", Spoken())}
    return run(folder, **budget, **changes)


def test_a_budget_in_seconds_is_forecast_from_its_first_steps(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fewer than quant\.qat\.min_steps=1000.*steps take .* s here"):
        timed(tmp_path, Ticking(0.1), when={"at_fraction": 0.5, "min_steps": 1000})


def switch_of(min_steps: int, at_fraction: float = 0.5) -> tuple[Switch, list[dict[str, Any]], Spoken]:
    """A switch at half of a budget of 60 seconds."""
    trainer = Trainer(**{**SETTINGS, "max_steps": None, "max_seconds": 60.0})
    events, console = list[dict[str, Any]](), Spoken()
    rounding, course = (
        rounding_of(tiny_model(), min_steps, at_fraction=at_fraction),
        trainer.course(["plain", "looped"]),
    )
    return Switch(rounding, trainer.schedule, course, ALONE, console, events.append), events, console


def test_when_the_steps_that_are_left_turn_out_too_few_it_stays_off_and_says_so() -> None:
    switch, events, console = switch_of(min_steps=101)
    progress = Progress(step=100)
    switch.before_step(progress, 0.49, 29.5)
    assert events == []
    switch.before_step(progress, 0.5, 30.0)  # 0.3 s a step: 100 are left
    switch.before_step(Progress(step=101), 0.51, 30.3)
    assert [(event["state"], event["steps_left"]) for event in events] == [("refused", 100)]
    assert console.said == [
        "quant.qat stays off: about 100 step(s) are left at step 100, fewer than quant.qat.min_steps=101"
    ]
    switch.conclude(progress)
    assert progress.rounded_at is None and len(events) == 1


def test_enough_steps_by_the_clock(tmp_path: Path) -> None:
    switch, events, _ = switch_of(min_steps=100)
    progress = Progress(step=100)
    switch.before_step(progress, 0.5, 30.0)
    assert progress.rounded_at == 100 and events[0]["steps_left"] == 100


def test_before_the_first_step_of_a_budget_in_seconds_no_number_of_steps_is_known() -> None:
    switch, events, console = switch_of(min_steps=100, at_fraction=0.0)
    switch.before_step(progress := Progress(), 0.0, 1e-6)
    assert progress.rounded_at == 0 and events[0]["steps_left"] is None and "depends on their length" in console.said[0]


def test_a_run_that_ends_before_its_moment_says_so() -> None:
    switch, events, _ = switch_of(min_steps=1)
    switch.conclude(Progress(step=3))
    assert events == [{"event": "qat", "state": "never"}]


def test_plans() -> None:
    assert Plan(None, 30).left == 0 and Plan(10, 30).left == 20
    refuse_few_steps(Plan(10, 30), 20)
    with pytest.raises(ValueError, match="leaves 20"):
        refuse_few_steps(Plan(10, 30), 21)
