"""Which runner a case file goes to, and running it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pgolf.interop.parity import caseops, evaluation, loaders, models, optim, pipeline, quant, recipe, train, ttt
from pgolf.interop.parity.case import Case, Outcome, Unsupported

Runner = Callable[[Case], Outcome]
Status = Literal["PASS", "FAIL", "UNSUPPORTED"]

KINDS: dict[str, Runner] = {
    "caseops_decode_malformed": caseops.malformed,
    "caseops_other_versions": caseops.other_versions,
    "caseops_strings": caseops.strings,
    "ema_": optim.average,
    "eval_": evaluation.published_evaluation,
    "eval_baseline": evaluation.baseline_evaluation,
    "gptq_1855_simsort": quant.similarity,
    "gptq_baseline_int8": quant.baseline,
    "gptq_byteshuffle": quant.byte_shuffle,
    "gptq_core": quant.core,
    "gptq_e2e": pipeline.end_to_end,
    "gptq_gate_int8row": quant.gate_rows,
    "gptq_lqer_pack": quant.lqer_factors,
    "gptq_roundtrip": pipeline.round_trip,
    "loader_baseline": loaders.sequential,
    "loader_cu_seqlens": loaders.cu_seqlens,
    "loader_docpack": loaders.document_packing,
    "loader_shuffled": loaders.shuffled_sequence,
    "model_": models.model_case,
    "muon_": optim.muon,
    "muon_ns": optim.newton_schulz,
    "optimizer_groups": recipe.optimizer_groups,
    "schedule": recipe.schedules,
    "train_": train.training,
    "ttt_": ttt.phased,
    "ttt_forward_": models.adapted_forward,
    "ttt_lora_baseline": ttt.per_document,
}
"""Prefix of a file name -> runner; the longest prefix wins."""


@dataclass(frozen=True)
class Result:
    """What is said about one case. `outcome` is None where nothing was compared."""

    name: str
    kind: str
    status: Status
    outcome: Outcome | None
    remarks: Sequence[str]


def kind_of(name: str) -> str | None:
    """The longest known prefix of `name`; None when no runner is known."""
    return max((prefix for prefix in KINDS if name.startswith(prefix)), key=len, default=None)


def check(path: Path, tokenizer: Path | None = None) -> Result:
    """Run one case file. Whatever goes wrong in it is a FAIL that says why, so that the other cases still run."""
    name = path.stem
    kind = kind_of(name)
    if kind is None:
        return Result(name, name.partition("_")[0], "UNSUPPORTED", None, ["no runner for cases of this name"])
    try:
        outcome = KINDS[kind](Case.load(path, kind, tokenizer))
    except Unsupported as reason:
        return Result(name, kind, "UNSUPPORTED", None, [str(reason)])
    except Exception as error:
        return Result(name, kind, "FAIL", None, [f"{type(error).__name__}: {' '.join(str(error).split())}"])
    return Result(name, kind, "PASS" if outcome.passed else "FAIL", outcome, outcome.remarks)


def case_files(folder: Path, only: str = "") -> list[Path]:
    """The case files of a folder in order of name, those whose name begins with `only`."""
    files = [*folder.glob("*.npz"), *folder.glob("*.json")]
    return sorted(path for path in files if path.name.startswith(only))


def find_tokenizer(folder: Path) -> Path | None:
    """The one tokenizer model in `folder` or its parent; None when there is none, or no telling which."""
    for place in (folder, folder.parent):
        models = sorted(place.glob("*.model"))
        if models:
            return models[0] if len(models) == 1 else None
    return None
