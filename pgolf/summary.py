"""summary.json: every final number of a run, gathered from its finished stages."""

from typing import Any

from pgolf.quant.budget import artifact_bytes
from pgolf.train.clock import SCORING, TRAINING, limits
from pgolf.workshop import Workshop

SCORED_STAGES = ("pre_quant", "post_quant", "final")
OF_TRAINING = (
    *("steps", "tokens", "seconds", "data_seconds", "looped_at", "rounded_at"),
    *("turns", "never_happened", "dead_parameters", "recompiles"),
)
TRAIN_LIMIT_SECONDS = SCORE_LIMIT_SECONDS = 600.0


def summarise(shop: Workshop, parameters: int) -> dict[str, Any]:
    """The summary of a run whose stages are done; parameters: of its model."""
    record = shop.record
    stages = {name: record.result(name) for name in SCORED_STAGES if record.done(name)}
    train = record.result("train") if record.done("train") else None
    compress = record.result("compress") if record.done("compress") else {}
    artifact = compress.get("artifact") or artifact_bytes(
        shop.directory, shop.recipe.quant.limit_bytes, shop.recipe.quant.reading
    )
    final = stages["final"]
    whole = (
        final.get("coverage", {}).get("left_out", 0) == 0
    )  # a part of the text has a figure in its stage, and is no result
    seconds = record.seconds()
    phases = {
        "training": _in_order(TRAINING, (train or {}).get("phases", {}), compress.get("phases", {})),
        "scoring": _in_order(SCORING, {"load": seconds["load"]}, final.get("phases", {"score": final["seconds"]})),
    }
    return {
        "val_bpb": final["val_bpb"] if whole else None,
        "val_loss": final["val_loss"] if whole else None,
        "experiment": shop.recipe.name,
        "seed": shop.recipe.seed,
        "digest": record.data.get("digest"),
        "stages": stages,
        "artifact": artifact,
        "classes": compress.get("classes"),
        "train": None if train is None else {key: train[key] for key in OF_TRAINING if key in train},
        "model": {"parameters": parameters},
        "audit": record.result("audit"),
        "baselines": record.result("prepare")["baselines"],
        "samples": record.result("samples")["samples"],
        "seconds": seconds,
        "phases": phases,
        "limits": limits(phases["training"], phases["scoring"], TRAIN_LIMIT_SECONDS, SCORE_LIMIT_SECONDS),
        "run_directory": str(shop.directory),
    }


def _in_order(names: tuple[str, ...], *seconds: dict[str, float]) -> dict[str, float]:
    """Seconds of each phase, summed over the stages that it occurred in; 0 for one that did not occur."""
    return {name: sum(one.get(name, 0.0) for one in seconds) for name in names}
