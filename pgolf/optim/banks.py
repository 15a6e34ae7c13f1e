"""Banks: the same-shaped matrices of a parameter group as one stack, shared out over ranks.

Rank r of R owns matrices [r s, (r + 1) s) with s = ceil(n / R), as in the published scripts with parameter banks: it
receives the mean gradient of its matrices (reduce-scatter), keeps their state, makes their updates, and sends these to
everyone (all-gather). With one rank nothing is sent and it owns all.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pgolf.distributed import Group
from pgolf.optim.transforms import State

NO_REDUCE_SCATTER = (
    "this back end of torch.distributed cannot reduce-scatter: gradients and updates of sharded optimisers "
    "are all-reduced instead (the same numbers, more traffic)"
)


def can_reduce_scatter(group: Group) -> bool:
    """Try both collectives that sharding uses on a few numbers. Every rank of the group calls it."""
    if group.world_size == 1:
        return True
    one, all_of_them = (torch.zeros(n, device=group.device) for n in (1, group.world_size))
    try:
        dist.reduce_scatter_tensor(one, all_of_them)
        dist.all_gather_into_tensor(all_of_them, one)
    except (RuntimeError, NotImplementedError):  # how back ends say that a collective is not there
        return False
    return True


class Bank:
    """Matrices [rows, cols] of one parameter group.

    `state` holds what this rank remembers of the matrices it owns: tensors [share, ...] by name.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], group: Group | None, scatters: bool) -> None:
        self.parameters, self.scatters = list(parameters), scatters
        self.shape: tuple[int, int] = (parameters[0].shape[0], parameters[0].shape[1])
        self.world_size, rank = (group.world_size, group.rank) if group else (1, 0)
        self.share = -(-len(self.parameters) // self.world_size)
        self.first = rank * self.share
        self.state: State = {}
        self._active: list[bool] = []
        self._sent: tuple[Tensor, Tensor, Any] | None = None

    @property
    def scale(self) -> float:
        """sqrt(max(1, rows/cols)): the size of an update of this shape."""
        return max(1.0, self.shape[0] / self.shape[1]) ** 0.5

    @property
    def numel(self) -> int:
        """Elements of the whole bank."""
        return len(self.parameters) * self.shape[0] * self.shape[1]

    def send_gradients(self, dtype: torch.dtype | None) -> bool:
        """Start averaging the gradients over the ranks, cast to `dtype` (None: as they are). False when the bank has
        none; the ranks agree on that, because they run the same plan."""
        self._active = [parameter.grad is not None for parameter in self.parameters]
        if not any(self._active):
            return False
        stack = self._stack(dtype)
        if self.world_size == 1:
            self._sent = (stack, stack, None)
        elif self.scatters:
            own = stack.new_empty((self.share, *self.shape))
            self._sent = (own, stack, dist.reduce_scatter_tensor(own, stack, async_op=True))
        else:
            work = dist.all_reduce(stack, async_op=True)
            self._sent = (stack[self.first : self.first + self.share], stack, work)
        return True

    @property
    def awaits(self) -> bool:
        """Whether gradients were sent and not taken yet."""
        return self._sent is not None

    def receive(self) -> Tensor:
        """The averaged gradients [share, rows, cols] of the owned matrices; changing them in place is seen by `take`.

        Rows of matrices without a gradient, and rows beyond the last matrix, are zero.
        """
        if self._sent is None:
            raise RuntimeError("receive() before send_gradients()")
        own, _, work = self._sent
        if work is not None:
            work.wait()
            own /= self.world_size
            self._sent = (own, own, None)
        return own

    def take(self) -> Tensor:
        """What `receive` gives, once."""
        own = self.receive()
        self._sent = None
        return own

    def forget_gradients(self) -> None:
        """Drop gradients that were sent and not taken, once they have arrived."""
        if self._sent is not None:
            self.take()

    def idle_rows(self) -> list[int]:
        """Owned rows whose matrix has no gradient in this step: neither they nor their state may change."""
        active = self._active[self.first : self.first + self.share]
        return [row for row, has_gradient in enumerate(active) if not has_gradient]

    def busy(self) -> tuple[list[int], list[Tensor]]:
        """Owned rows whose matrix has a gradient in this step, and these matrices."""
        owned = self.parameters[self.first : self.first + self.share]
        idle = self.idle_rows()
        rows = [row for row in range(len(owned)) if row not in idle]
        return rows, [owned[row].detach() for row in rows]

    def gather(self, updates: Tensor) -> tuple[Tensor, Any]:
        """Start sending [share, rows, cols] to everyone; gives [at least n, rows, cols], complete once the second
        value, when it is not None, was waited for."""
        if self.world_size == 1:
            return updates, None
        every = updates.new_zeros((self.share * self.world_size, *self.shape))
        if self.scatters:
            return every, dist.all_gather_into_tensor(every, updates.contiguous(), async_op=True)
        every[self.first : self.first + self.share] = updates
        return every, dist.all_reduce(every, async_op=True)

    def active_parameters(self, updates: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The parameters that had a gradient, and their rows of `updates` [at least n, ...]."""
        pairs = [
            (parameter, update)
            for parameter, update, active in zip(self.parameters, updates, self._active, strict=False)
            if active
        ]
        return [parameter for parameter, _ in pairs], [update for _, update in pairs]

    def gathered_state(self) -> list[State]:
        """The state of every matrix of the bank, from all ranks. Every rank calls it."""
        every = {}
        for name, value in self.state.items():
            complete, work = self.gather_any(value)
            if work is not None:
                work.wait()
            every[name] = complete
        return [{name: value[index] for name, value in every.items()} for index in range(len(self.parameters))]

    def load(self, index: int, state: State) -> None:
        """Restore the state of matrix `index` of the bank if this rank owns it. ValueError when it is that of another
        kind of optimiser."""
        if state.keys() != self.state.keys():
            had, has = ", ".join(state), ", ".join(self.state)
            raise ValueError(f"the saved state of this optimiser has {had}; as it is configured now it has {has}")
        row = index - self.first
        if 0 <= row < self.share:
            for name, value in state.items():
                self.state[name][row].copy_(value)

    def gather_any(self, value: Tensor) -> tuple[Tensor, Any]:
        """As `gather`, of any [share, ...], in its own precision: what the other ranks have comes in place of zeros."""
        if self.world_size == 1:
            return value, None
        every = value.new_zeros((self.share * self.world_size, *value.shape[1:]))
        every[self.first : self.first + self.share] = value
        return every, dist.all_reduce(every, async_op=True)

    def _stack(self, dtype: torch.dtype | None) -> Tensor:
        gradients = [parameter.grad for parameter in self.parameters]
        dtype = dtype or next(gradient.dtype for gradient in gradients if gradient is not None)
        blank = torch.zeros(self.shape, dtype=dtype, device=self.parameters[0].device)
        rows = [blank if gradient is None else gradient.to(dtype) for gradient in gradients]
        return torch.stack(rows + [blank] * (self.share * self.world_size - len(rows)))
