"""Every setting of a training run over its budget: what was planned, what came of it, what never happened."""

from pathlib import Path
from typing import Any

from pgolf.report.drawing import COLOURS, GREY, new_figure, save
from pgolf.report.runs import Run

TITLES = {
    "lr_scale": "learning rate / its peak",
    "momentum": "momentum of the matrices",
    "weight_decay_scale": "weight decay / its base",
    "plan": "layer plan",
    "sequence_tokens": "sequence length, tokens",
    "batch_tokens": "tokens of a step",
}


def never_happened(run: Run) -> list[str]:
    """A sentence for every turn of a schedule that training ended before."""
    record = _record(run.events()[0])
    return [str(sentence) for sentence in record.get("never_happened", [])]


def settings(run: Run, path: Path) -> Path | None:
    """One panel a setting, planned (dashed) and actual over the part of the budget; None for a run that recorded no
    plan. A setting that stays the same throughout, as planned, has no panel."""
    events, _ = run.events()
    planned = _record(events).get("planned", {})
    steps = list({event["step"]: event for event in events if event.get("event") == "step"}.values())
    panels = [name for name in TITLES if _moves(name, planned, steps)]
    if not panels or not steps:
        return None
    drawing, axes = new_figure(3.6 * max(len(panels), 2), 3.4, len(panels))
    for one, name in zip(axes, panels, strict=True):
        done = [event for event in steps if name in event and "fraction" in event]
        levels = _levels([*planned[name], *(event[name] for event in done)])
        heights = [levels.get(value, value) for value in planned[name]]
        one.plot(planned["fraction"], heights, "--", color=GREY, linewidth=2.6, label="planned")
        actual = [levels.get(event[name], event[name]) for event in done]
        one.plot(
            [event["fraction"] for event in done],
            actual,
            color=COLOURS[0],
            drawstyle="steps-post",
            lw=1.5,
            label="actual",
        )
        if levels:
            one.set_yticks(list(levels.values()), list(levels))
        one.set_title(TITLES[name], fontsize=10, loc="left", fontweight="bold")
        one.set_xlabel("part of the budget")
        one.set_xlim(-0.02, 1.02)
    axes[0].legend(frameon=False, fontsize=8.5)
    return save(drawing, path)


def _record(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The newest record of the schedules."""
    return next((event for event in reversed(events) if event.get("event") == "schedules"), {})


def _moves(name: str, planned: dict[str, list[Any]], steps: list[dict[str, Any]]) -> bool:
    values = {*planned.get(name, []), *(event[name] for event in steps if name in event)}
    return name in planned and len(values) > 1


def _levels(values: list[Any]) -> dict[str, int]:
    """Heights of the words among the values, in the order in which they occur; empty for numbers."""
    return {word: height for height, word in enumerate(dict.fromkeys(v for v in values if isinstance(v, str)))}
