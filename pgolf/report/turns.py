"""The events of a run's schedules: when each came, and which never did; and how alike repeated passes are."""

from pathlib import Path
from typing import Any

from pgolf.report.drawing import COLOURS, GREY, is_number, new_figure, save, series, title
from pgolf.report.runs import Run
from pgolf.report.sections import Table
from pgolf.report.settings import never_happened

HEADERS = ["setting", "event", "planned", "after step", "part of the budget", "seconds"]


def turns(run: Run) -> list[dict[str, Any]]:
    """The events that came, in order; one that came twice, before a kill and after it, as it came last."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for event in run.events()[0]:
        if event.get("event") == "turn" and all(is_number(event.get(key)) for key in ("step", "fraction", "seconds")):
            name = str(event.get("setting")), str(event.get("what"))
            found.pop(name, None)
            found[name] = event
    return list(found.values())


def turns_table(run: Run) -> Table | None:
    """One row an event, those that never came last; None for a run that recorded neither."""
    rows = [
        [
            str(event["setting"]),
            str(event["what"]),
            str(event.get("planned") or "when it is due"),
            f"{event['step']:,}",
            f"{event['fraction']:.1%}",
            f"{event['seconds']:.1f}",
        ]
        for event in turns(run)
    ]
    for sentence in never_happened(run):
        setting, _, what = sentence.partition(": ")
        rows.append([setting, what, "", "never", "", ""])
    return Table("Events", HEADERS, rows, left=3) if rows else None


def dead_parameters(run: Run) -> list[str]:
    """A warning for every parameter that did not learn."""
    train = run.summary.get("train")
    dead = train.get("dead_parameters") if isinstance(train, dict) else None
    return [
        f"The parameter {one.get('parameter')} did not learn ({one.get('why')}, found at step {one.get('step')})."
        for one in dead or []
    ]


def loss_with_turns(run: Run, path: Path) -> Path | None:
    """Training loss over steps and over the clock, with a numbered mark for each event; None without events."""
    events, marks = run.events()[0], turns(run)
    if not marks or not series(events, "train_loss", "step")[0]:
        return None
    drawing, panels = new_figure(11.0, 4.6, 2)
    for axes, over, label in zip(panels, ("step", "seconds"), ("step", "training seconds"), strict=True):
        across, losses = series(events, "train_loss", over)
        axes.plot(across, losses, color=COLOURS[0], linewidth=1.2)
        settled = losses[len(losses) // 20 :]
        room = 0.05 * max(max(settled) - min(settled), 1e-3)
        axes.set_ylim(min(settled) - room, max(settled) + 3 * room)
        for number, mark in enumerate(marks, 1):
            text = f"{number} {mark['setting']}: {mark['what']}" if over == "step" else None
            axes.axvline(mark[over], color=COLOURS[1 + number % 7], linewidth=1.3, label=text)
            axes.annotate(str(number), (mark[over], 1.0), xycoords=("data", "axes fraction"), fontsize=8, ha="center")
        axes.set_xlabel(label)
    panels[0].set_ylabel("training loss, nats per token")
    title(panels[0], "Training loss and what happened\n")
    drawing.legend(frameon=False, fontsize=8, ncols=2, loc="outside lower center")
    return save(drawing, path)


def passes(run: Run, path: Path) -> Path | None:
    """Cosine between what successive visits of a block add, over steps; None where it was not measured."""
    lines: dict[str, dict[int, float]] = {}
    for event in run.events()[0]:
        if event.get("event") != "passes" or not isinstance(event.get("cosine"), dict):
            continue
        for block, cosines in event["cosine"].items():
            for visit, value in enumerate(cosines, 1):
                lines.setdefault(f"block {block}, visits {visit} and {visit + 1}", {})[int(event["step"])] = value
    if not lines:
        return None
    drawing, (axes,) = new_figure(8.0, 4.0)
    for number, (name, points) in enumerate(lines.items()):
        style = "-" if number < len(COLOURS) else "--"
        axes.plot(
            list(points), list(points.values()), style, color=COLOURS[number % len(COLOURS)], marker=".", label=name
        )
    axes.axhline(0, color=GREY, linewidth=1)
    axes.set_xlabel("step")
    axes.set_ylabel("cosine, mean over tokens")
    axes.legend(frameon=False, fontsize=8)
    title(axes, "What repeated passes add: alike (1), apart (0), opposed (-1)")
    return save(drawing, path)
