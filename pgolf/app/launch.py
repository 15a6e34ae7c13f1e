"""From a composed job to a finished run directory: lock, skip or resume, work, say how it ended."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from pgolf import register
from pgolf.app import failure, identity, ranks, signals, slots, spawn, table
from pgolf.app.check import require_valid
from pgolf.app.compose import Job
from pgolf.app.console import Screen
from pgolf.app.lock import NotOurs, RunLock
from pgolf.app.plain import job_config
from pgolf.digest import digest, group_digest
from pgolf.errors import UserError
from pgolf.files import read_json, remove_temporaries, write_bytes, write_json

INTERRUPTED = 130
INTERRUPTION = "interrupted; the same command continues"


class Launch:
    """Processes on this machine. nproc: one per GPU; None: all GPUs, 1 without a GPU.

    timeout_seconds: how long a process waits for the others before it says that one of them hangs.
    share_gpus: take nproc of this machine's GPUs that no other such run uses, and wait until there are; so jobs that
    run at the same time fill the machine. Raises ValueError for impossible numbers.
    """

    def __init__(self, *, nproc: int | None, timeout_seconds: float, share_gpus: bool) -> None:
        if nproc is not None and nproc < 1:
            raise ValueError(f"nproc={nproc} must be 1 or more, or null for all GPUs")
        if timeout_seconds <= 0.0:
            raise ValueError(f"timeout_seconds={timeout_seconds} must be positive")
        if share_gpus and nproc is None:
            raise ValueError("share_gpus=true takes nproc GPUs and leaves the others: set nproc, to 1 say")
        self.nproc, self.timeout_seconds, self.share_gpus = nproc, timeout_seconds, share_gpus

    def processes(self) -> int:
        """How many processes to start."""
        if self.nproc is not None:
            return self.nproc
        import torch

        return max(1, torch.cuda.device_count())


def launch_of(config: dict[str, Any]) -> Launch:
    """The launch node of a resolved configuration."""
    return Launch(**{name: value for name, value in config["launch"].items() if not name.startswith("_")})


@dataclass(frozen=True)
class Request:
    """One run to carry out.

    source: another run's directory, to be scored again instead of training.
    requantise: from its weights before quantisation, else from its artifact.
    swept: one job of a sweep, which shows a line and no table when it is finished already.
    """

    config: dict[str, Any]
    overrides: list[str]
    directory: Path
    source: Path | None = None
    requantise: bool = False
    swept: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a run ended, with the exit status of the process; `summary` when there is a result."""

    state: Literal["done", "skipped", "failed", "interrupted"]
    sentence: str
    exit_status: int
    summary: dict[str, Any] | None = None


def carry_out(request: Request) -> Outcome:
    """Run `request` to its end; every error becomes an Outcome that has been shown and noted."""
    signals.interruptible()
    if "LOCAL_RANK" in os.environ:
        return ranks.as_one_rank(request)
    screen = Screen(request.directory / "train.log")

    def alone() -> Outcome:
        with RunLock(request.directory, screen.say) as lock:
            finished = prepare(request, screen, lock)
            return finished or _work(request, screen, lock)

    return guarded(request, screen, alone)


def task(composed: DictConfig) -> float | None:
    """The Hydra task: one job, single or of a sweep; gives val_bpb, which sweepers minimise.

    A single run exits with its status. In a sweep a failed job is noted in its directory and the
    next one runs, unless `fail_fast`; an interruption ends the sweep.
    """
    hydra = HydraConfig.get()
    swept = hydra.mode == RunMode.MULTIRUN
    config, unresolved = job_config(composed, hydra)
    overrides = list(OmegaConf.to_container(hydra.overrides.task))  # type: ignore[arg-type]
    directory = Path(hydra.runtime.output_dir)
    require_valid([Job(overrides, config, directory, unresolved=unresolved)])
    if swept:
        print(f"\njob {hydra.job.num}: {' '.join(overrides)}")
    outcome = carry_out(Request(config, overrides, directory, swept=swept))
    stops = outcome.state == "interrupted" or (outcome.state == "failed" and config["fail_fast"])
    if outcome.exit_status and (stops or not swept):
        raise SystemExit(outcome.exit_status)
    value = None if outcome.summary is None else outcome.summary["val_bpb"]
    return None if value is None else float(value)


def _work(request: Request, screen: Screen, lock: RunLock) -> Outcome:
    launch = launch_of(request.config)
    nproc = launch.processes()
    if launch.share_gpus:
        with slots.taken(slots.visible_gpus(), nproc, screen.say) as held:
            screen.log(f"starting {nproc} process(es) on GPU {', '.join(held.gpus)}")
            spawn.torchrun(request.directory, nproc, [lock.descriptor, *held.descriptors], held.gpus)
    elif nproc == 1:
        from pgolf import distributed
        from pgolf.app.worker import work

        work(request.directory, distributed.alone(), screen)
    else:
        screen.log(f"starting {nproc} processes")
        spawn.torchrun(request.directory, nproc, [lock.descriptor])
    return conclude(request, screen)


def prepare(request: Request, screen: Screen, lock: RunLock) -> Outcome | None:
    """Make the locked directory ready; an Outcome when its result is there already.

    A finished result is renamed, never overwritten, when the configuration says `force`; a forced run
    that was cut off is continued by the same command. Raises NotOurs when the directory holds another
    configuration's run.
    """
    directory, wanted = request.directory, digest(request.config)
    status = read_status(directory)
    cut_off = status.get("state") in ("running", "failed") and status.get("digest") == wanted
    forced_before = cut_off and bool(_read_run(directory).get("forced"))
    if status.get("state") == "done" and status.get("digest") == wanted and not request.config["force"]:
        summary = read_json(directory / "summary.json")
        if not request.swept:
            table.show(summary, screen)
        screen.show(f"{directory} is finished: {table.line(summary)}. Run it again with force=true.")
        return Outcome("skipped", "finished before", 0, summary)
    if status and request.config["force"] and not forced_before:
        kept = _move_aside(directory)
        lock.retake()
        screen.say(f"the earlier result is kept in {kept}")
    elif status and status.get("digest") != wanted:
        raise NotOurs(
            f"{directory} holds the run of another configuration "
            f"({str(status.get('digest'))[:8]}, not {wanted[:8]}): "
            "choose another name=..., or force=true to set the old one aside."
        )
    elif status:
        screen.say(f"continuing the run in {directory}")
    else:
        screen.say(f"run directory {directory}")
    failure.forget(directory)
    remove_temporaries(directory)
    _write_start(request, screen)
    return None


def _read_run(directory: Path) -> dict[str, Any]:
    """run.json of a run directory, empty when there is none."""
    path = directory / "run.json"
    return dict(read_json(path)) if path.exists() else {}


def read_status(directory: Path) -> dict[str, Any]:
    """status.json of a run directory, empty when no run has started there."""
    path = directory / "status.json"
    return dict(read_json(path)) if path.exists() else {}


def write_status(request: Request, state: str, error: str | None) -> None:
    """Set the state, keeping the stage that the run itself noted, and note it in the register of the folder."""
    directory, config = request.directory, request.config
    stage, wanted = read_status(directory).get("stage"), digest(config)
    write_json(
        directory / "status.json",
        {"state": state, "stage": stage, "digest": wanted, "error": error},
    )
    facts = {
        "group": group_digest(config),
        "digest": wanted,
        "seed": config["seed"],
        "name": config["name"],
        "overrides": request.overrides,
    }
    register.note(directory, state, facts, error)


def _move_aside(directory: Path) -> Path:
    number = 1
    while (kept := directory.with_name(f"{directory.name}.previous-{number}")).exists():
        number += 1
    directory.rename(kept)
    return kept


def own_code(packages: list[str]) -> str:
    """What is said aloud of a configuration that runs code from outside pgolf."""
    return (
        f"allow_targets: code of {', '.join(packages)} is run. It is not in code.zip or wrapper.py: the artifact "
        "does not count its bytes."
    )


def _write_start(request: Request, screen: Screen) -> None:
    directory, config = request.directory, request.config
    if config.get("allow_targets"):
        screen.say(own_code(config["allow_targets"]))
    composed = yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode()
    write_json(directory / "config.json", config)
    write_bytes(directory / "config.yaml", composed)
    write_bytes(directory / ".hydra" / "config.yaml", composed)
    write_bytes(directory / ".hydra" / "overrides.yaml", yaml.safe_dump(request.overrides).encode())
    known = _read_run(directory)
    now = identity.identity(config) | {"forced": config["force"]}
    earlier = {key: known[key] for key in ("code_hash", "torch", "python", "git") if key in known}
    if any(now.get(key) != value for key, value in earlier.items()):
        screen.say("the code or its libraries have changed since this run began; finished stages are kept.")
        known["earlier"] = [*known.get("earlier", []), earlier]
    source = {"source": str(request.source), "requantise": request.requantise} if request.source else {}
    write_json(directory / "run.json", {**known, **now, **source})
    write_status(request, "running", None)


def conclude(request: Request, screen: Screen) -> Outcome:
    """Note that the run is done and show its result."""
    summary = read_json(request.directory / "summary.json")
    too_large = table.over_the_limit(summary["artifact"])
    table.show(summary, screen)
    if too_large is not None:
        screen.log(table.line(summary))
        return _failed(request, screen, too_large, 1)
    write_status(request, "done", None)
    screen.log(table.line(summary))
    _draw_schedules(request.directory, screen)
    valid = summary["audit"]["verdict"] == "pass"
    return Outcome("done", table.line(summary), 0 if valid else 1, summary)


def _draw_schedules(directory: Path, screen: Screen) -> None:
    """schedules.png of the run directory, planned and actual; a line in the log where it cannot be drawn."""
    from pgolf.report.runs import read_run
    from pgolf.report.settings import settings

    try:
        settings(read_run(directory), directory / "schedules.png")
    except UserError as error:  # no matplotlib, or a full disk: the result stands
        screen.log(f"no picture of the schedules: {error}")


def guarded(request: Request, screen: Screen, action: Callable[[], Outcome], one_of_many: bool = False) -> Outcome:
    """Do `action`; note an interruption or an error in the run directory and show a sentence.

    one_of_many: this is a rank under the user's torchrun, which ends the others when one fails.
    """
    directory = request.directory
    try:
        return action()
    except KeyboardInterrupt:
        other = failure.first(directory) if one_of_many else None
        if other is not None:
            return _failed(request, screen, failure.sentence(other, directory, 2), other.exit_status)
        write_status(request, "failed", INTERRUPTION)
        screen.say(f"{INTERRUPTION}.")
        return Outcome("interrupted", INTERRUPTION, INTERRUPTED)
    except NotOurs as refusal:
        screen.show(f"pgolf: {refusal}")
        return Outcome("failed", str(refusal), refusal.exit_status)
    except Exception as error:
        noted = failure.first(directory) or failure.describe(directory, 0, error)
        if isinstance(error, UserError):
            return _failed(request, screen, str(error), error.exit_status)
        return _failed(request, screen, failure.sentence(noted, directory, 1 + noted.rank), noted.exit_status)


def _failed(request: Request, screen: Screen, sentence: str, exit_status: int) -> Outcome:
    screen.say(f"pgolf: {sentence}")
    try:
        write_status(request, "failed", sentence)
    except UserError:  # the disk is full: the directory still says that the run is not done
        screen.show("There was no room to note this in status.json; the same command continues.")
    return Outcome("failed", sentence, exit_status)
