"""Mirrors of a run's events elsewhere: the run directory is the record, a mirror fails no run."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pgolf.console import Console
from pgolf.digest import SHORT
from pgolf.errors import UserError


class NoTracker:
    """No mirror."""

    def __init__(self) -> None:
        """Nothing to set up."""

    def start(self, directory: Path, identity: dict[str, Any], config: dict[str, Any], console: Console) -> None:
        """Nothing to start."""

    def log(self, event: dict[str, Any]) -> None:
        """Drop the event."""

    def finish(self, summary: dict[str, Any] | None) -> None:
        """Nothing to finish."""


class WandbTracker:
    """Weights & Biases: one wandb run per run directory.

    Seeds of one recipe share a wandb group (its name and the digest without the seed); the job type is `train` or
    `evaluate`; the tags are the recipe's name and `tags`; every configuration key is flat (`optim.matrix.lr`), so that
    a table can show and filter by it. Curves run over `step/step`, and val_bpb counts by its lowest value.

    mode: `offline` writes below the run directory and needs no network or account; required: refuse
    to start without wandb instead of going on without it. The wandb id is the digest, so a resumed
    run continues its curve. Only the leader of a group may start one.
    """

    def __init__(
        self,
        *,
        mode: Literal["online", "offline"],
        required: bool,
        project: str,
        entity: str | None,
        tags: list[str],
    ) -> None:
        self.mode, self.required, self.project, self.entity, self.tags = mode, required, project, entity, tags
        self._run: Any = None
        self._console: Console | None = None

    def start(self, directory: Path, identity: dict[str, Any], config: dict[str, Any], console: Console) -> None:
        """Open the wandb run. UserError when wandb is required and not installed."""
        self._console = console
        try:
            with quiet():
                import wandb
        except ImportError as error:
            if self.required:
                raise UserError('track=wandb needs wandb: pip install "pgolf[track]", or choose track=none.') from error
            console.say('wandb is not installed (pip install "pgolf[track]"): metrics.jsonl alone keeps the events.')
            return
        with self._forgiving("start"):
            self._run = wandb.init(
                project=self.project,
                entity=self.entity,
                dir=str(directory),
                name=directory.name,
                id=str(identity["digest"])[:32],
                group=group_name(config, str(identity["group_digest"])),
                job_type="evaluate" if identity.get("source") else "train",
                tags=list(dict.fromkeys([str(config["name"]), *self.tags])),
                config={**flatten(config), **flatten({"identity": identity})},
                mode=self.mode,
                resume="allow" if self.mode == "online" else None,
                settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
            )
            self._run.define_metric("step/step", hidden=True)
            self._run.define_metric("step/*", step_metric="step/step")
            self._run.define_metric("val_bpb", summary="min")

    def log(self, event: dict[str, Any]) -> None:
        """Send the numbers of one event under `<event>/<key>`."""
        if self._run is None:
            return
        kind = str(event.get("event", "event"))
        if kind == "stage" and event.get("stage"):
            kind = f"stage/{event['stage']}"
        figures = {
            f"{kind}/{key}": value
            for key, value in flatten(event).items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        with self._forgiving("log"):
            self._run.log(figures)

    def finish(self, summary: dict[str, Any] | None) -> None:
        """Send the summary and close; without a summary the wandb run is marked as failed."""
        if self._run is None:
            return
        run, self._run = self._run, None
        with self._forgiving("finish"):
            try:
                if summary is not None:
                    run.summary.update(flatten(summary))
            finally:
                run.finish(exit_code=0 if summary is not None else 1)

    @contextlib.contextmanager
    def _forgiving(self, doing: str) -> Iterator[None]:
        """A failure of wandb is said once, ends the mirror, and lets the run go on."""
        try:
            with quiet():
                yield
        except Exception as error:  # wandb raises its own, the network's and the operating system's errors
            self._run = None
            if self._console is not None:
                self._console.say(
                    f"wandb failed to {doing} ({type(error).__name__}: {error}); the run goes on without it."
                )


def group_name(config: dict[str, Any], group_digest: str) -> str:
    """The wandb group that the seeds of one recipe share."""
    return f"{config['name']}-{group_digest[:SHORT]}"


def flatten(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys to leaves; lists are leaves."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep wandb from writing to this terminal."""
    before = os.environ.get("WANDB_SILENT")
    os.environ["WANDB_SILENT"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["WANDB_SILENT"]
        else:
            os.environ["WANDB_SILENT"] = before
