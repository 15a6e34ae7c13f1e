"""Ending a run that is clearly worse than a reference at the same steps: a screen spends no more on it.

The thresholds stand in the configuration before the run begins, and a run that ends this way has no score: its status
is failed, with the step and the two losses. Without the option the same command continues it from there.
"""

import json
from collections import deque
from pathlib import Path

from pgolf.distributed import Group
from pgolf.errors import UserError

EVERY = 10  # steps between agreements of the ranks


class BehindReference:
    """Stops training when the mean training loss of the last `window` steps is more than behind_nats above the
    reference run's over the same steps.

    reference: a run directory, best of the same seed, so that both saw the same batches; after_steps: no verdict
    before. A step that the reference did not reach is not compared. Raises ValueError for impossible numbers; `refuse`
    says before any work that the reference is none.
    """

    def __init__(self, *, reference: str, behind_nats: float, after_steps: int, window: int) -> None:
        if not behind_nats > 0.0:
            raise ValueError(
                f"behind_nats={behind_nats} must be positive: a step is noisy, an equal run would be stopped"
            )
        if after_steps < 0 or window < 1:
            raise ValueError(f"after_steps={after_steps} must not be negative and window={window} at least 1")
        self.reference, self.behind_nats = Path(reference).expanduser(), behind_nats
        self.after_steps, self.window = after_steps, window
        self._losses: dict[int, float] = {}
        self._behind: deque[tuple[float, float]] = deque(maxlen=window)

    def refuse(self) -> None:
        """Raise ValueError when the reference is no run with training losses."""
        self._read()

    def begin(self, group: Group) -> None:
        """Read the reference. UserError when it has no training losses."""
        self._behind.clear()
        if group.leads:
            try:
                self._losses = self._read()
            except ValueError as error:
                raise UserError(f"train.early_stop: {error}") from error

    def _read(self) -> dict[int, float]:
        path = self.reference / "metrics.jsonl"
        if not path.is_file():
            raise ValueError(f"reference={self.reference} has no metrics.jsonl: give the directory of a run")
        if not (losses := dict(_losses(path))):
            raise ValueError(f"{path} holds no training step, so there is nothing to stop against")
        return losses

    def reason(self, step: int, loss: float, group: Group) -> str | None:
        """Why training should end after this step, on every rank alike; None to go on. step: counted from 1; loss: of
        the step, nats per token."""
        verdict = 0.0
        if group.leads and step in self._losses:
            self._behind.append((loss, self._losses[step]))
            full = len(self._behind) == self.window and step >= self.after_steps
            verdict = self._gap() if full and self._gap() > self.behind_nats else 0.0
        if step % EVERY:
            return None
        verdict = group.from_leader(verdict)
        if verdict == 0.0:
            return None
        return (
            f"stopped early at step {step}: over the last {self.window} steps the training loss is {verdict:.4f} nats "
            f"a token above that of {self.reference} at the same steps (train.early_stop.behind_nats="
            f"{self.behind_nats}). There is no score; without train.early_stop the same command goes on from here."
        )

    def _gap(self) -> float:
        return sum(mine - theirs for mine, theirs in self._behind) / len(self._behind)


def _losses(path: Path) -> list[tuple[int, float]]:
    found = []
    for line in path.read_text("utf-8", "replace").splitlines():
        if '"step"' not in line:
            continue
        try:
            event = json.loads(line)
        except ValueError:
            continue  # a killed run tears a line
        if isinstance(event, dict) and event.get("event") == "step" and "train_loss" in event:
            found.append((int(event["step"]), float(event["train_loss"])))
    return found
