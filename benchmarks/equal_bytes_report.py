"""The tables and the picture of benchmarks/equal_bytes.py."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt

from pgolf.files import write_bytes, write_json

AS_TRAINED, BASELINE = "as trained", "SDClip as published"


@dataclass(frozen=True)
class Row:
    """One model after one quantiser.

    `share` of the published quantiser's bytes was to be filled; CPU seconds of quantising and packing; losses in nats a
    token, of the validation text and of training text that the run has not come to; `divergence` there of the model's
    predictions from those before quantisation (KL, nats a token); `hessian_error` the sum of e^T H e, `weighted_error`
    that of F e^T H e.
    """

    model: str
    quantiser: str
    share: float
    bytes: int
    seconds: float
    val_loss: float
    val_bpb: float
    unseen_loss: float
    divergence: float
    hessian_error: float
    weighted_error: float


Key = tuple[str, str, float]


def key_of(row: Row) -> Key:
    """What tells rows apart."""
    return row.model, row.quantiser, row.share


def read_rows(results: Path) -> list[Row]:
    """The rows of an earlier call; none when there was none."""
    path = results / "equal_bytes.json"
    return [Row(**row) for row in json.loads(path.read_text())] if path.exists() else []


def write_rows(rows: list[Row], results: Path) -> None:
    """equal_bytes.json, replaced as a whole."""
    write_json(results / "equal_bytes.json", [asdict(row) for row in rows])


@dataclass
class Cell:
    """One quantiser at one share over all models: damage in bits per byte, in nats of unseen text, and in divergence;
    and what is left of the published quantiser's (of SDClip's, where the bytes are fewer), as means over models."""

    bpb: list[float] = field(default_factory=list)
    unseen: list[float] = field(default_factory=list)
    divergence: list[float] = field(default_factory=list)
    ratios: dict[str, list[float]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)


COMPARED = ("bpb", "unseen", "divergence", "hessian", "weighted")


def damages(row: Row, trained: Row) -> dict[str, float]:
    """What quantisation did, by every measure."""
    return {
        "bpb": row.val_bpb - trained.val_bpb,
        "unseen": row.unseen_loss - trained.unseen_loss,
        "divergence": row.divergence,
        "hessian": row.hessian_error,
        "weighted": row.weighted_error,
    }


def cells(rows: list[Row]) -> dict[tuple[float, str], Cell]:
    """(share, quantiser) -> its means over the models."""
    found: dict[tuple[float, str], Cell] = {}
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if row.model == model]
        (trained,) = [row for row in own if row.quantiser == AS_TRAINED]
        for row in own:
            if row is trained:
                continue
            rival = next(one for one in own if one.share == row.share and one.quantiser in (BASELINE, "SDClip"))
            here, there = damages(row, trained), damages(rival, trained)
            cell = found.setdefault((row.share, row.quantiser), Cell())
            cell.bpb.append(here["bpb"])
            cell.unseen.append(here["unseen"])
            cell.divergence.append(here["divergence"])
            cell.seconds.append(row.seconds)
            for key in COMPARED:
                cell.ratios.setdefault(key, []).append(here[key] / there[key])
    return found


def table(rows: list[Row]) -> str:
    """Markdown: damage of every quantiser, mean over the models, and the ratios to SDClip at the same bytes."""
    models = list(dict.fromkeys(row.model for row in rows))
    lines = [
        f"Means over n of {len(models)} models: {', '.join(models)}.",
        "",
        "Ratios are damage over that of SDClip at the same bytes, the largest of the models in brackets.",
        "",
        "| bytes | quantiser | n | bpb | unseen, nats | KL, nats | ratios: bpb | unseen | KL | e H e | F e H e | s |",
        "|" + 12 * "---|",
    ]
    for (share, name), cell in sorted(cells(rows).items(), key=lambda one: -one[0][0]):
        ratios = " | ".join(f"{mean(cell.ratios[key]):.2f} ({max(cell.ratios[key]):.2f})" for key in COMPARED)
        means = f"{mean(cell.bpb):+.5f} | {mean(cell.unseen):+.5f} | {mean(cell.divergence):.5f}"
        head = f"{share:.0%} | {name} | {len(cell.bpb)}"
        lines.append(f"| {head} | {means} | {ratios} | {mean(cell.seconds):.0f} |")
    return "\n".join(lines) + "\n"


def draw(rows: list[Row], path: Path) -> None:
    """Damage against bytes, a line for each quantiser that was tried at several numbers of bytes."""
    found = cells(rows)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), constrained_layout=True)
    names = ["SDClip", *(name for name in dict.fromkeys(name for _, name in found) if name not in (BASELINE, "SDClip"))]
    for axis, measure, title in (
        (axes[0], "bpb", "loss, bits per byte of the validation text"),
        (axes[1], "divergence", "KL from the model as trained, nats a token"),
    ):
        for name in names:
            points = [
                (100 * share, mean(getattr(cell, measure)))
                for (share, own), cell in found.items()
                if own == name or (name == "SDClip" and own == BASELINE)
            ]
            if len(points) > 1:
                axis.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
        axis.set_yscale("log")
        axis.set_xlabel("bytes, % of SDClip int6 / int7 with brotli as published")
        axis.set_title(f"damage by quantisation: {title}", fontsize=10)
        axis.grid(True, which="both", alpha=0.3)
    axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write_reports(rows: list[Row], results: Path, plot: Path) -> None:
    """equal_bytes.json, equal_bytes.md and the picture."""
    write_rows(rows, results)
    write_bytes(results / "equal_bytes.md", table(rows).encode())
    draw(rows, plot)
    print(table(rows))
