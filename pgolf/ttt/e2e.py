"""Inner steps: an adapter learns a chunk, once it is scored, by more than one step."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pgolf.score.scorer import Scorer, Window

MOST_STEPS, LARGEST_LR = 16, 0.1


class InnerSteps:
    """`steps` further steps on a chunk that has been scored, before the usual one, so steps + 1 in all.

    lr: their learning rate, None for the adapters' own. Each step has a gradient of its own, taken where the step
    before it led; that of the first comes from the forward that was scored. With steps=0 nothing changes, to the bit.

    Source: end-to-end test-time training (arXiv 2512.23675: 4 steps, rate 1e-3, chunks of 512) as in PR 2059, whose
    last step repeats the gradient from before the inner ones; here it is taken anew. Raises ValueError for steps
    outside 0 to 16 or a rate outside (0, 0.1], the bounds given there.
    """

    def __init__(self, *, steps: int, lr: float | None = None) -> None:
        if not 0 <= steps <= MOST_STEPS:
            raise ValueError(f"ttt.inner.steps={steps} must lie between 0 and {MOST_STEPS}")
        if lr is not None and not 0 < lr <= LARGEST_LR:
            raise ValueError(
                f"ttt.inner.lr={lr} must be above 0 and at most {LARGEST_LR}, or null for the rate of the adapters"
            )
        self.steps, self.lr = steps, lr

    def take(
        self,
        optimizer: torch.optim.Optimizer,
        step: Callable[[Tensor], None],
        again: Callable[[], Tensor],
        nats: Tensor,
    ) -> Tensor:
        """The inner steps. step(nats) takes one; again() gives the cost under the adapters as they are then.

        Returns the cost that the usual step is to be taken on: `nats` [B, C], differentiable, or that after the steps.
        """
        usual = [settings["lr"] for settings in optimizer.param_groups]
        if self.lr is not None:
            for settings in optimizer.param_groups:
                settings["lr"] = self.lr
        for _ in range(self.steps):
            step(nats)
            nats = again()
        for settings, lr in zip(optimizer.param_groups, usual, strict=True):
            settings["lr"] = lr
        return nats


def cost_of_scored(scorer: Scorer, windows: Sequence[Window], log_probs: Tensor) -> Tensor:
    """The cost in nats [B, C] of windows that were scored before, under log_probs [B, C, V]; 0 beyond a window's
    length. Nothing of it is charged."""
    targets = torch.zeros(log_probs.shape[:2], dtype=torch.int64)
    valid = torch.zeros(log_probs.shape[:2], dtype=torch.bool)
    for row, window in enumerate(windows):
        targets[row, : window.length] = scorer.revealed(window.document, window.score_start, window.score_end)
        valid[row, : window.length] = True
    nats = -log_probs.gather(-1, targets.to(log_probs.device)[..., None]).squeeze(-1).float()
    return torch.where(valid.to(log_probs.device), nats, 0.0)
