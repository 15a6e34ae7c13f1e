"""What test-time training does to the score: by document, and as it went, against seconds."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.errors import UserError
from pgolf.report.drawing import COLOURS, GREY, is_number, new_figure, save, title
from pgolf.report.runs import Documents, Run


def document_bpb(documents: Documents, path: Path) -> Path | None:
    """Bits per byte of each document before and after test-time training, over its length."""
    if "post_quant" not in documents.nats or len(documents.num_bytes) < 2:
        return None
    keep = documents.num_bytes > 0
    size = documents.num_bytes[keep]
    before, after = documents.bpb("post_quant")[keep], documents.bpb("final")[keep]
    drawing, (left, right) = new_figure(10.5, 4.2, 2)
    for values, name, colour in ((before, "before", COLOURS[1]), (after, "after", COLOURS[0])):
        left.scatter(size, values, s=7, color=colour, alpha=0.3, linewidths=0)
        centres, middle = binned(size, values, weights=None)
        left.plot(centres, middle, color=colour, linewidth=2, marker="o", ms=4, label=name)
    left.set_ylabel("bits per byte")
    title(left, "Documents before and after\ntest-time training (line: median)")
    left.legend(frameon=False, fontsize=9)
    low, high = np.quantile(np.concatenate([before, after]), [0.005, 0.995])
    left.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    gain = before - after
    right.axhline(0, color="#404040", linewidth=1)
    right.scatter(size, gain, s=7, color=COLOURS[2], alpha=0.35, linewidths=0)
    centres, middle = binned(size, gain, weights=size)
    right.plot(centres, middle, color=COLOURS[2], linewidth=2, marker="o", ms=4)
    low, high = np.quantile(gain, [0.005, 0.995])
    room = 0.08 * max(high - low, 1e-4)
    right.set_ylim(min(low, 0.0) - room, max(high, 0.0) + room)
    right.set_ylabel("gain, bits per byte (up is better)")
    share = f"{np.mean(gain > 0):.0%} of {len(gain)} documents improve"
    title(right, f"Gain: {share}\n(line: mean weighted by bytes)")
    for axes in (left, right):
        if size.max() >= 10 * size.min():  # below a decade the labels of a logarithmic axis overlap
            axes.set_xscale("log")
        axes.set_xlabel("document length, bytes")
    return save(drawing, path)


def binned(
    size: np.ndarray, values: np.ndarray, weights: np.ndarray | None, bins: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Median (or mean by `weights`) of values in up to `bins` groups of equal count by size."""
    order = np.argsort(size, kind="stable")
    chunks = [chunk for chunk in np.array_split(order, min(bins, len(order))) if len(chunk)]
    centres = np.array([np.median(size[chunk]) for chunk in chunks])
    if weights is None:
        return centres, np.array([np.median(values[chunk]) for chunk in chunks])
    means = [np.average(values[chunk], weights=weights[chunk]) for chunk in chunks]
    return centres, np.array(means)


def score_events(run: Run) -> list[dict[str, Any]]:
    """The events of the last time that the final stage was scored, in order; earlier tries that were cut off are left
    out."""
    found: list[dict[str, Any]] = []
    for event in run.events()[0]:
        if event.get("stage") != "final":
            continue
        if event.get("event") == "stage" and event.get("state") == "start":
            found = []
        known = ("score_seconds", "bpb_so_far") if event.get("event") == "score" else ("begin", "end")
        if event.get("event") in ("score", "phase") and all(is_number(event.get(key)) for key in known):
            found.append(event)
    return found


def no_preview(run: Run) -> str | None:
    """The warning that goes with a running figure; None where none was recorded."""
    events = [event for event in score_events(run) if event["event"] == "score"]
    if not events:
        return None
    first, last = events[0], events[-1]
    world = run.identity.get("world_size", 1)
    ranks = f", and on {world} processes only those of the first one" if world != 1 else ""
    return (
        "A running score is no preview of the final one: it covers the documents scored so far, in the order of the "
        f"strategy (often the longest first){ranks}. Here it was {first['bpb_so_far']:.4f} after the first batch, "
        f"{last['bpb_so_far']:.4f} at the last one recorded, and the score is {run.val_bpb:.4f}."
    )


def trajectory(run: Run, path: Path) -> Path | None:
    """The running score, and the gain over the same documents before adaptation, against seconds; phases shaded."""
    events = score_events(run)
    scored = [event for event in events if event["event"] == "score"]
    if len(scored) < 2:
        return None
    gains = gain_so_far(run, scored)
    drawing, panels = new_figure(10.5 if gains else 7.0, 4.2, 2 if gains else 1)
    seconds = [event["score_seconds"] for event in scored]
    panels[0].plot(seconds, [event["bpb_so_far"] for event in scored], color=COLOURS[0], marker=".", linewidth=1.4)
    panels[0].axhline(run.val_bpb, color=GREY, linestyle="--", linewidth=1.4, label=f"final {run.val_bpb:.4f}")
    panels[0].set_ylabel("bits per byte of what is scored so far")
    title(panels[0], "Running score: no preview of the final one")
    if gains:
        panels[1].axhline(0, color="#404040", linewidth=1)
        panels[1].plot(seconds, [sum(gains[: end + 1]) for end in range(len(gains))], color=COLOURS[2], marker=".")
        panels[1].set_ylabel("bits per byte of the whole text")
        title(panels[1], "Gain by test-time training so far")
    for axes in panels:
        for order, event in enumerate(event for event in events if event["event"] == "phase"):
            text = "global phases" if order == 0 else None
            axes.axvspan(event["begin"], event["end"], color=COLOURS[4], alpha=0.35, linewidth=0, label=text)
        axes.set_xlabel("seconds of scoring")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=9)
    return save(drawing, path)


def gain_so_far(run: Run, scored: list[dict[str, Any]]) -> list[float]:
    """What each batch took off the bits per byte of the whole text against the compressed model on the same documents;
    empty when the events do not name their documents or there are no scores by document."""
    if not all(isinstance(event.get("scored"), list) for event in scored):
        return []
    try:
        documents = run.documents()
    except UserError:  # the section says so where it would draw the documents
        return []
    if "post_quant" not in documents.nats:
        return []
    saved = (documents.nats["post_quant"] - documents.nats["final"]) / math.log(2) / documents.num_bytes.sum()
    place = {int(document): row for row, document in enumerate(documents.document)}
    return [float(sum(saved[place[one]] for one in event["scored"] if one in place)) for event in scored]
