"""The learning-rate schedule and the layer plan of a run, planned and actual."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.report.drawing import COLOURS, GREY, is_number, new_figure, save, series, title
from pgolf.report.runs import Run


def schedule(run: Run, path: Path) -> Path | None:
    """Learning-rate scale and recurrence switch, planned and actual, over steps and the clock."""
    events, _ = run.events()
    if not series(events, "lr_scale", "step")[0]:
        return None
    drawing, (left, right) = new_figure(10.0, 4.2, 2)
    for axes, over, limit in ((left, "step", "max_steps"), (right, "seconds", "max_seconds")):
        budget = planned_budget(run.config, limit)
        if budget is not None:
            places = np.linspace(0.0, 1.0, 201)
            expected = planned_scale(run.config, places)
            if expected is not None:
                axes.plot(places * budget, expected, "--", color=GREY, lw=2.6, label="rate, planned")
            switch = run.config["train"].get("loop_at")
            for moment in filter(is_number, switch if isinstance(switch, list) else [switch]):
                at = moment * budget
                text = f"recurrence, planned ({at:.4g})"
                axes.axvline(at, color=GREY, linestyle=":", linewidth=2.4, label=text)
        axes.plot(*series(events, "lr_scale", over), color=COLOURS[0], lw=1.6, label="rate")
        for order, (event, name) in enumerate(plan_switches(events)):
            if is_number(event.get(over)):
                text = f"plan {name} ({event[over]:.4g})"
                axes.axvline(event[over], color=COLOURS[1 + order % 3], lw=1.5, label=text)
        axes.set_ylabel("learning rate / its peak")
        axes.set_ylim(0, 1.06)
        axes.legend(frameon=False, fontsize=8.5, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.17))
    left.set_xlabel("step")
    right.set_xlabel("training seconds")
    title(left, "Schedule over steps")
    title(right, "Schedule over the clock")
    return save(drawing, path)


def plan_switches(events: list[dict[str, Any]]) -> list[tuple[dict[str, Any], str]]:
    """Step events at which the layer plan changed, with a name such as `plain -> looped`."""
    steps = [event for event in events if event.get("event") == "step" and event.get("plan")]
    return [
        (now, f"{was['plan']} -> {now['plan']}") for was, now in itertools.pairwise(steps) if was["plan"] != now["plan"]
    ]


def planned_budget(config: dict[str, Any], limit: str) -> float | None:
    """The limit `max_steps` or `max_seconds` of the training, None where there is none."""
    train = config.get("train")
    value = train.get(limit) if isinstance(train, dict) else None
    return float(value) if value is not None and is_number(value) else None


def planned_scale(config: dict[str, Any], fraction: np.ndarray) -> np.ndarray | None:
    """The warm-down multiplier that the configuration asks for at each part of the budget.

    Worked out here from `train.schedule.{fraction,floor}`, apart from the code that trained, so
    that the plot can show a schedule that did not do what it should. None for other schedules.
    """
    node = config["train"].get("schedule")
    if not isinstance(node, dict) or not str(node.get("_target_")).endswith(".Warmdown"):
        return None
    given = node.get("fraction"), node.get("floor")
    if not all(is_number(value) for value in given) or not given[0]:
        return None
    length, floor = float(given[0]), float(given[1] or 0.0)
    falling = np.maximum((1.0 - fraction) / length, floor)
    return np.where(fraction < 1.0 - length, 1.0, falling)
