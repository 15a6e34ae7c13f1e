"""Training runs of a few steps that the tests of this folder share. Also a program: see `main`."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pgolf.app.machine import leave
from pgolf.console import Silent
from pgolf.data.loaders import DocumentPackingLoader
from pgolf.distributed import Group
from pgolf.kernels.attend import sdpa
from pgolf.model.state_space import StateSpace
from pgolf.optim.averaging import ExponentialAverage
from pgolf.optim.clip import GlobalNorm
from pgolf.optim.muon import Muon
from pgolf.optim.roles import RoleOptimizers
from pgolf.optim.schedule import MomentumRamp, Stages, Warmdown
from pgolf.train.clock import BudgetClock
from pgolf.train.loop import Trainer
from tests.support import ALONE, FakeDataset, tiny_model
from tests.train.loss import made

SETTINGS: dict[str, Any] = {
    "max_steps": 30,
    "max_seconds": None,
    "batch_tokens": 512,
    "micro_batch_tokens": 256,
    "sequence_tokens": 64,
    "loader": DocumentPackingLoader,
    "prefetch_batches": 2,
    "loop_at": 0.4,
    "clip": GlobalNorm(norm=1.0),
    "schedule": Warmdown(fraction=0.5, floor=0.1),
    "momentum": MomentumRamp(start=0.8, end=0.9, steps=5),
    "averaging": partial(ExponentialAverage, decay=0.8),
    "checkpoint_seconds": 1e9,
    "compile": False,
}
MUON = partial(
    Muon,
    lr=0.03,
    momentum=0.9,
    weight_decay=0.01,
    nesterov=True,
    row_normalise=True,
    newton_schulz_steps=5,
    coefficients="polar_express",
)
STAGED = {
    "batch": Stages(stages=[(1024, 0.5), (2048, 1.0)]),
    "context": Stages(stages=[(16, 0.4), (64, 1.0)]),
    "rewarmup_steps": 3,
    "batch_tokens": 2048,
}


class Spoken(Silent):
    """A console that remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


def optimisers(model: torch.nn.Module) -> RoleOptimizers:
    adam = partial(torch.optim.AdamW, lr=0.02)
    return RoleOptimizers(model, matrix=MUON, embedding=adam, scalar=adam, head=adam, gate=adam)


def train(
    directory: Path, group: Group = ALONE, seed: int = 1, stop_after=None, model=None, on=None, parts=None, **changes
):
    """Train on predictable text; gives averaged weights, progress, step events and the model.

    parts: of the model, where it is not given. on: gets every event; clock, console and validate go to `run`, other
    changes to the Trainer.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if group.leads and not (directory / "train_000000.bin").exists():
        FakeDataset(directory)
    group.barrier()
    dataset = FakeDataset.__new__(FakeDataset)
    dataset.train_files = sorted(directory.glob("train_*.bin"))
    model, events = model or tiny_model(seed=seed, **(parts or {})), []

    def log(event):
        if on is not None:
            on(event)
        if event["event"] == "step":
            events.append(event)
            if stop_after is not None and event["step"] == stop_after:
                raise KeyboardInterrupt

    places = {"clock": BudgetClock(), "console": Silent(), "group": group, "log": log}
    to_run = ("clock", "console", "validate", "rounding", "token_bytes", "fused")
    places |= {name: changes.pop(name) for name in to_run if name in changes}
    trainer = Trainer(**{**SETTINGS, **changes})
    trainer.equip(model, seed)
    averaged, progress = trainer.run(model, optimisers(model), dataset, sdpa, directory / "checkpoint", **places)
    return averaged, progress, events, model


def losses(events) -> list[float]:
    return [event["train_loss"] for event in events]


OBJECTIVE = {"batch_tokens": 1024, "loss": made.everything(), "token_bytes": lambda: (made.BYTES, made.SPACES)}
STATE_SPACE = StateSpace(layers=[0, 2], state_dim=6, head_dim=8, expand=1, conv_width=4, chunk=8)
MIXED = {"batch_tokens": 1024, "parts": {"state_space": STATE_SPACE}}  # Mamba-2 in some blocks, attention in others
VARIANTS = {"plain": {"batch_tokens": 1024}, "staged": STAGED, "objective": OBJECTIVE, "mixed": MIXED}
STEPS = 12  # of a run over ranks: the plan changes in step 5, stages do in steps 5 and 6
CUT = 7  # the step before which `cut_off` ends


def both(folder: Path, group: Group) -> dict[str, Any]:
    """A few steps under each of the settings that numbers of ranks are compared with."""
    found = {}
    for name, changes in VARIANTS.items():
        averaged, _, events, model = train(folder / name, group=group, max_steps=STEPS, **changes)
        weights = {key: value.clone() for key, value in model.state_dict().items()}
        norms = [event["grad_norm"] for event in events]
        found[name] = {"average": averaged, "losses": losses(events), "weights": weights, "norms": norms}
    return found


def cut_off(folder: Path, group: Group) -> None:
    """A run of the plain settings that ends in step CUT + 1, with a checkpoint of step CUT."""
    changes = {"max_steps": STEPS, "checkpoint_seconds": 0.0, "stop_after": CUT + 1, **VARIANTS["plain"]}
    train(folder / "continued", group=group, **changes)


class Ticking:
    """A clock that ticks so many seconds a look."""

    def __init__(self, tick: float) -> None:
        self.seconds, self.tick = 0.0, tick

    def __call__(self) -> float:
        self.seconds += self.tick
        return self.seconds


def settings_by_the_clock(folder: Path, group: Group) -> list[list[tuple[float, str]]]:
    """Learning rate and plan of every step of every rank, where the clocks of all but the leader run wild."""
    clock = BudgetClock(now=Ticking(0.2 if group.leads else 86400.0))
    budget = {"max_steps": None, "max_seconds": 6.0, "clock": clock}
    _, _, events, _ = train(folder, group=group, **budget, **VARIANTS["plain"])
    return group.gather([(event["lr_scale"], event["plan"]) for event in events])


def main(folder: Path, out: Path) -> None:
    """On every rank: everything that `tests/train/test_ranks.py` looks at; the leader writes what came of it."""
    from pgolf import distributed

    torch.set_num_threads(1)
    group = distributed.join()
    found = both(folder, group)
    _, _, events, model = train(folder / "continued", group=group, max_steps=STEPS, **VARIANTS["plain"])
    found["continued"] = {"losses": losses(events), "weights": dict(model.state_dict())}
    found["clocks"] = settings_by_the_clock(folder / "clocks", group)
    if group.leads:
        torch.save(found, out)
    group.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    leave(0)
