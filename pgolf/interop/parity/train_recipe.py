"""From a case of a whole training to the trainer and the optimisers that it describes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pgolf.data.loaders import Batch, BatchShape, DocumentPackingLoader
from pgolf.interop.parity.build import Settings
from pgolf.interop.parity.case import Case, Unsupported
from pgolf.interop.parity.optim import POLAR_SCRIPTS, STOCK_SCRIPTS, newton_schulz_steps
from pgolf.interop.parity.recipe import momentum_of, warmdown_of
from pgolf.model.gpt import GPT
from pgolf.optim.adam import AdamW
from pgolf.optim.averaging import ExponentialAverage
from pgolf.optim.clip import LocalNorm
from pgolf.optim.muon import Muon, PrecisionName
from pgolf.optim.roles import RoleOptimizers
from pgolf.optim.schedule import Schedule, Taper
from pgolf.train.loop import Trainer
from pgolf.train.loss.forward import Loss, plain_of
from pgolf.train.loss.objective import Given

BUCKET = 64  # cu_seqlens of the scripts are padded to a multiple of it


@dataclass(frozen=True)
class Tolerance:
    """loss: of losses and bits per byte, absolute, and of norms of gradients, relative; weights: relative to their
    norm."""

    loss: float
    weights: float


PRECISIONS: dict[str, tuple[PrecisionName, Tolerance]] = {
    "fp32": ("fp32", Tolerance(1e-4, 1e-4)),
    "bf16": ("bf16", Tolerance(2e-2, 5e-3)),
}
"""Precision of Muon in the case -> ours, and what may differ. In bf16 a gradient that differs in its last bit is now
and then rounded the other way, which the iteration makes larger: noise of 1e-7 in the initial weights alone moves the
losses of an eight-step case by 3e-3 and its weights by 1.6e-3. Losses before the first update are as in fp32."""
ONE_VALUE = {"warmup_steps": 0, "max_wallclock_seconds": 0}
"""Settings that are known in one value alone: a budget in seconds is not the same twice."""
INERT = {"val_loss_every", "train_log_every"}


@dataclass(frozen=True)
class Recipe:
    """A training as the case describes it: the trainer and the optimisers of a model, and what only the runner asks
    for. rank, world_size: whose batches are read; gradients are not summed over ranks."""

    trainer: "WatchedTrainer"
    optimizers: Callable[[GPT], RoleOptimizers]
    tolerance: Tolerance
    world_size: int
    rank: int
    grad_accum_steps: int
    val_batch_tokens: int


class WatchedTrainer(Trainer):
    """A trainer that keeps the loss of every micro-batch, in the order of training."""

    micro_losses: list[float]

    def _prepared_loss(self, *arguments: Any) -> Callable[..., Loss]:
        plain = super()._prepared_loss(*arguments)

        def watched(batch: Batch, longest: int, *given: Given) -> Loss:
            loss = plain(batch, longest, *given)
            self.micro_losses.append(float(plain_of(loss).detach()))
            return loss

        return watched


def recipe_of(case: Case) -> Recipe:
    """The training of a case. Unsupported by name for what it does not know."""
    meta = case.meta
    script, config = str(meta["script"]), meta["config"]
    if script not in POLAR_SCRIPTS | STOCK_SCRIPTS:
        raise Unsupported(f"training of script {script}: it is none of those with parameter banks that are known")
    if meta.get("muon_precision") not in PRECISIONS:
        raise Unsupported(f"muon_precision={meta.get('muon_precision')} is not known")
    precision, tolerance = PRECISIONS[meta["muon_precision"]]
    if config.get("asym_logit_rescale"):
        raise Unsupported("asym_logit_rescale: the scripts do not train their two caps, here they are trained")
    if not config.get("tie_embeddings", True):
        raise Unsupported("training with an untied head, whose optimiser no case describes")
    get = (settings := Settings({**meta["train"], **_ranks(meta)})).get
    for key, known in ONE_VALUE.items():
        if (value := get(key, known)) != known:
            raise Unsupported(f"{key}={value} is not here")
    world_size, rank, accum = int(get("world_size")), int(get("rank")), int(get("grad_accum_steps"))
    micro = int(get("train_batch_tokens")) // (world_size * accum)
    schedule = {key: get(key) for key in ("warmdown_frac", "min_lr", "enable_looping_at")} | _momentum(settings)
    trainer = WatchedTrainer(
        max_steps=int(get("iterations")),
        max_seconds=None,
        batch_tokens=micro * accum,
        micro_batch_tokens=micro,
        sequence_tokens=int(get("train_seq_len")),
        loader=partial(_loader, world_size, rank),
        prefetch_batches=1,
        loop_at=_loop_at(float(schedule["enable_looping_at"]), int(config.get("num_loops", 0))),
        clip=LocalNorm(norm=float(get("grad_clip_norm", 0.0)) or math.inf),
        schedule=warmdown_of(schedule),
        momentum=momentum_of(schedule),
        weight_decay=_taper(settings),
        averaging=partial(ExponentialAverage, decay=float(get("ema_decay"))),
        checkpoint_seconds=math.inf,
        compile=False,
    )
    recipe = Recipe(
        trainer=trainer,
        optimizers=_optimizers(settings, script, precision),
        tolerance=tolerance,
        world_size=world_size,
        rank=rank,
        grad_accum_steps=accum,
        val_batch_tokens=int(get("val_batch_tokens", 0) or 0),
    )
    if unknown := [name for name in settings.rest() if name not in INERT]:
        raise Unsupported(f"setting(s) not known: {', '.join(unknown)}")
    return recipe


def _ranks(meta: dict[str, Any]) -> dict[str, int]:
    """World size and rank, which a case may give beside its settings or not at all."""
    return {key: meta.get(key, meta["train"].get(key, default)) for key, default in (("world_size", 1), ("rank", 0))}


def _loader(
    world_size: int, rank: int, files: Sequence[Path], here: int, rank_here: int, shape: BatchShape
) -> DocumentPackingLoader:
    """The batches of a rank of the published run, read by the one process here."""
    return DocumentPackingLoader(files, world_size, rank, shape, bucket=BUCKET, spans_per_fit="ranks")


def _loop_at(start: float, num_loops: int) -> float:
    """Part of the budget at which recurrence starts; beyond the last step it never does."""
    return min(max(start, 0.0), 1.0) if num_loops else 1.0


def _momentum(settings: Settings) -> dict[str, Any]:
    return {
        key: settings.get(key) for key in ("muon_momentum", "muon_momentum_warmup_start", "muon_momentum_warmup_steps")
    }


def _taper(settings: Settings) -> Schedule | None:
    """The schedule of Muon's weight decay (PR 1729); None where a case does not have one."""
    start, final = float(settings.get("wd_taper_start_frac", 1.0)), float(settings.get("wd_taper_final_mult", 1.0))
    return Taper(start=start, final=final) if start < 1.0 and final != 1.0 else None


def _optimizers(settings: Settings, script: str, precision: PrecisionName) -> Callable[[GPT], RoleOptimizers]:
    get = settings.get
    betas, eps = (float(get("beta1")), float(get("beta2"))), float(get("adam_eps"))
    muon = partial(
        Muon,
        lr=float(get("matrix_lr")),
        momentum=float(get("muon_momentum")),
        weight_decay=float(get("muon_wd")),
        nesterov=True,
        row_normalise=bool(get("muon_row_normalize")),
        newton_schulz_steps=newton_schulz_steps(int(get("muon_backend_steps")), script),
        coefficients="polar_express" if script in POLAR_SCRIPTS else "stock",
        precision=precision,
    )
    embedding = partial(
        AdamW, lr=float(get("tied_embed_lr")), betas=betas, eps=eps, weight_decay=float(get("embed_wd"))
    )
    scalar = partial(AdamW, lr=float(get("scalar_lr")), betas=betas, eps=eps, weight_decay=float(get("adam_wd")))
    return partial(RoleOptimizers, matrix=muon, embedding=embedding, scalar=scalar, gate=scalar, head=None)
