"""Between the backward pass and the step: gradients of all ranks become one, and not too long a one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pgolf.distributed import Group
from pgolf.optim.clip import Clip, shorten, total_norm
from pgolf.optim.roles import RoleOptimizers


class GradientExchange:
    """Averages gradients over ranks and clips them.

    The matrices of a sharded Muon travel as shares (reduce-scatter), everything else as a whole (all-reduce). With
    local clipping the shares are still under way when `average` returns, and the optimisers that do not need them step
    first; the norm of the averaged gradient has to wait for them. With one rank nothing travels.
    """

    def __init__(self, optimizers: RoleOptimizers, group: Group, clip: Clip | None) -> None:
        self.optimizers, self.group, self.clip = optimizers, group, clip

    def average(self, extras: Sequence[Tensor] = ()) -> Tensor:
        """Average the gradients, and in place the tensors `extras`, over the ranks; then `optimizers.step()`.

        Gives the L2 norm before clipping, the same on every rank: that of the averaged gradient, or with local clipping
        the mean of the ranks' own norms. It is not finite when a gradient is not: do not step then but call
        `optimizers.zero_grad()`.
        """
        sharded = self.optimizers.sharded if self.group.world_size > 1 else []
        local_norm = None
        if self.clip is not None and self.clip.local:
            everything = self._gradients(self.optimizers.parameters)
            local_norm = total_norm(everything)
            shorten(everything, local_norm, self.clip.limit(local_norm))
        for optimizer in sharded:
            optimizer.send_gradients()
        travelling = {id(p) for optimizer in sharded for group in optimizer.param_groups for p in group["params"]}
        whole = self._gradients([p for p in self.optimizers.parameters if id(p) not in travelling])
        self.group.mean_([*extras, *whole, *([local_norm] if local_norm is not None else [])])
        if local_norm is not None:
            return local_norm
        shares = [share for optimizer in sharded for share in optimizer.received_gradients()]
        norm = self._norm(whole, shares) if sharded else total_norm(whole)
        if self.clip is not None:
            shorten([*whole, *shares], norm, self.clip.limit(norm))
        return norm

    def _norm(self, whole: list[Tensor], shares: list[Tensor]) -> Tensor:
        squares = total_norm(shares).square() if shares else torch.zeros((), device=self.group.device)
        return (self.group.sum_(squares) + total_norm(whole).square()).sqrt()

    @staticmethod
    def _gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
        return [parameter.grad for parameter in parameters if parameter.grad is not None]
