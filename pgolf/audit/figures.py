"""The figures that a scoring reported, for the checks that hold them against the ledger and against the text."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.score.ledger import Total


@dataclass(frozen=True)
class Reported:
    """Figures of a finished scoring that covered all of a text: nats per token, tokens, bits per byte; nats: the sum
    over its documents' scores, None where they were not kept."""

    val_loss: float
    tokens: int
    val_bpb: float
    nats: float | None = None


def of_total(total: Total) -> Reported:
    """The figures of a ledger's total."""
    return Reported(total.val_loss, total.tokens, total.val_bpb, total.nats)


def of_stages(stages: Mapping[str, Mapping[str, Any]], directory: Path) -> dict[str, Reported]:
    """The stages of a run that scored all of the text, with the sums of the scores that `directory` keeps."""
    path = directory / "scores.npz"
    kept = dict(np.load(path)) if path.exists() else {}
    found = {}
    for stage, figures in stages.items():
        if figures.get("coverage", {}).get("left_out"):
            continue
        nats = kept.get(f"nats_{stage}")
        summed = None if nats is None else float(np.sum(nats))
        found[stage] = Reported(figures["val_loss"], figures["tokens"], figures["val_bpb"], summed)
    return found
