"""Runner of whole trainings: train_model of the scripts with parameter banks, step by step, through `Trainer`.

Loader, recurrence, schedules, clipping, Muon, AdamW and the average are the parts that every run here is made of. Where
a case goes on to quantise what was trained, so does the runner.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgolf.console import Silent
from pgolf.data.validation import BOS_ID
from pgolf.interop.parity import coverage, pipeline
from pgolf.interop.parity.build import build_model
from pgolf.interop.parity.case import Case, Comparison, Outcome, Unsupported
from pgolf.interop.parity.evaluation import chunk_of_rank
from pgolf.interop.parity.loaders import write_shards
from pgolf.interop.parity.text import ALONE, scored, text_of
from pgolf.interop.parity.train_recipe import PRECISIONS, Recipe, Tolerance, recipe_of
from pgolf.interop.published import to_published
from pgolf.kernels.attend import sdpa
from pgolf.model.gpt import GPT
from pgolf.optim.roles import RoleOptimizers
from pgolf.train.clock import BudgetClock

SCHEDULED = 1e-12  # schedules are a few operations on doubles
GROUPS = {"tok": "embedding", "muon": "matrix", "scalar": "scalar"}
"""Published optimiser -> role whose optimiser it is here."""
COMPARED = {"p", "after_step", "raw_final", "ema_final", "H", "res"}
"""What stands before the slash in the names of arrays."""


@dataclass(frozen=True)
class _Shards:
    train_files: list[Path]


class _Steps:
    """Compares the state after every step, which is when the trainer logs it."""

    def __init__(self, case: Case, compare: Comparison, model: GPT, optimizers: RoleOptimizers, tolerance: Tolerance):
        self.case, self.compare, self.model, self.optimizers = case, compare, model, optimizers
        self.tolerance = tolerance
        self.events: list[dict[str, Any]] = []

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] != "step":
            return
        done = len(self.events)
        self.events.append(event)
        rows = self.case.meta.get("per_step", [])
        if done < len(rows):
            self._compare_schedules(done, rows[done], event["plan"])
        _compare_weights(self.compare, self.case, f"after_step{done}/", self.model.state_dict(), self.tolerance.weights)
        norms = self.case.meta.get("param_norms_per_step", [])
        if done < len(norms):
            weights = _weights(self.case, self.model.state_dict())
            for name, norm in norms[done].items():
                error = self.tolerance.weights * max(1.0, norm)
                self.compare.close(f"norm of {name} after step {done}", weights[name].norm(), norm, error)

    def _compare_schedules(self, step: int, row: dict[str, Any], plan: str) -> None:
        names = str(self.case.meta["lr_order"]).strip("[]").replace(" ", "").split(",")
        if unknown := sorted(set(names) - GROUPS.keys()):
            raise Unsupported(f"optimiser(s) not known: {', '.join(unknown)}")
        lrs = [self.optimizers.optimizers[GROUPS[name]].param_groups[0]["lr"] for name in names]
        self.compare.close(f"learning rates of step {step}", lrs, row["lr"], SCHEDULED)
        momentum = self.optimizers.optimizers["matrix"].param_groups[0]["momentum"]
        self.compare.close(f"momentum of step {step}", [momentum], row["mom"], SCHEDULED)
        looping = plan == "looped" and bool(self.case.meta["config"].get("num_loops", 0))
        self.compare.exact(f"recurrence in step {step}", looping, row["looping"])


def training(case: Case) -> Outcome:
    """Losses of every micro-batch, norms of gradients, learning rates, momentum and recurrence of every step; weights
    on the way, at the end and averaged; the score at the end; and what quantisation makes of the average."""
    meta, compare = case.meta, Comparison()
    model, recipe = build_model(str(meta["script"]), meta["config"], case.below("p/")), recipe_of(case)
    optimizers = recipe.optimizers(model)
    steps = _Steps(case, compare, model, optimizers, recipe.tolerance)
    recipe.trainer.micro_losses = []
    with tempfile.TemporaryDirectory() as folder:
        shards, state = _Shards(write_shards(case, Path(folder))), Path(folder) / "checkpoint"
        clock, console = BudgetClock(), Silent()
        averaged, _ = recipe.trainer.run(
            model, optimizers, shards, sdpa, state, group=ALONE, clock=clock, console=console, log=steps
        )
    losses = np.reshape(recipe.trainer.micro_losses, (-1, recipe.grad_accum_steps))
    expected, exact = case.arrays["micro_losses"], PRECISIONS["fp32"][1]
    compare.close("losses of micro-batches", losses, expected, recipe.tolerance.loss)
    compare.close("losses of the first step", losses[:1], expected[:1], exact.loss)
    norms = [event["grad_norm"] for event in steps.events]
    compare.near("norms of gradients", norms, case.arrays["grad_norm_before_clip"], recipe.tolerance.loss)
    _compare_weights(compare, case, "raw_final/", model.state_dict(), recipe.tolerance.weights)
    _compare_weights(compare, case, "ema_final/", averaged, recipe.tolerance.weights)
    if "final_val" in meta:
        model.set_plan(steps.events[-1]["plan"])
        _compare_score(compare, case, model, recipe)
    if "quant" in meta:
        model.load_state_dict({name: value.to(model.state_dict()[name].dtype) for name, value in averaged.items()})
        pipeline.quantisation(case, compare, model, trained_here=True)
    if recipe.world_size > 1:
        compare.remarks.append(f"rank {recipe.rank} of {recipe.world_size} by itself: no sum over ranks")
    if rest := sorted({key.split("/")[0].rstrip("0123456789") for key in case.arrays if "/" in key} - COMPARED):
        compare.remarks.append(f"not compared: arrays of {', '.join(rest)}")
    return compare.outcome()


def _weights(case: Case, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights by published name. What a script has and never reads (factors of lanes that no pass comes to), so that it
    stays as it begins, has no parameter here."""
    given = {name: torch.from_numpy(value) for name, value in case.below("p/").items()}
    return given | {to_published(name): value.detach() for name, value in state.items()}


def _compare_weights(compare: Comparison, case: Case, prefix: str, state: dict[str, Tensor], tolerance: float) -> None:
    """The weights that a case holds under `prefix`, relative to their norm."""
    weights = _weights(case, state)
    for name, expected in case.below(prefix).items():
        compare.near(f"{prefix}{name}", weights[name].reshape(expected.shape), expected, tolerance)


def _compare_score(compare: Comparison, case: Case, model: GPT, recipe: Recipe) -> None:
    """eval_val of the weights as they are: loss and bits per byte, with the bytes of the sidecar."""
    length = int(case.meta["config"]["eval_seq_len"])
    if "val_bytes" not in case.arrays:
        raise Unsupported("final_val without val_bytes: the bytes of its tokens are not given")
    kept = coverage.truncated_length(len(case.arrays["val_tokens"]), length)
    tokens, charged = case.arrays["val_tokens"][:kept], case.arrays["val_bytes"][:kept].astype(np.int32)
    rows = recipe.val_batch_tokens // (recipe.world_size * recipe.grad_accum_steps * length)
    cut, strategy = chunk_of_rank(kept, length, rows, recipe.world_size, recipe.rank)
    text = text_of(tokens[cut], charged[cut], np.flatnonzero(tokens[cut] == BOS_ID))
    total = scored(model, strategy, text).total()
    loss, bits_per_byte = case.meta["final_val"]
    compare.close("loss at the end", total.val_loss, loss, recipe.tolerance.loss)
    compare.close("bits per byte at the end", total.val_bpb, bits_per_byte, recipe.tolerance.loss)
