"""The group of processes that work on one run. The only module besides the command line that reads the environment."""

import os
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT_SECONDS = 1800.0


class Group:
    """Rank, world size, device and the few collectives a run needs. With one process every collective is the
    identity."""

    def __init__(self, rank: int, world_size: int, device: torch.device) -> None:
        self.rank, self.world_size, self.device = rank, world_size, device

    @property
    def leads(self) -> bool:
        """True on the one process that writes files and talks to people."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum `tensor` over the group, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def mean_(self, tensors: Iterable[Tensor]) -> None:
        """Average tensors over the group in place, in one message per dtype."""
        if self.world_size == 1:
            return
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_dtype.setdefault(tensor.dtype, []).append(tensor)
        for members in by_dtype.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in members])
            dist.all_reduce(flat)
            flat /= self.world_size
            offset = 0
            for tensor in members:
                tensor.copy_(flat[offset : offset + tensor.numel()].view_as(tensor))
                offset += tensor.numel()

    def from_leader(self, value: float) -> float:
        """The leader's `value`, on every rank: so that no rank switches a step apart."""
        if self.world_size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(shared, src=0)
        return float(shared.item())

    def largest(self, values: Sequence[float]) -> list[float]:
        """The largest of every rank's numbers, entry by entry, on every rank; one message."""
        if self.world_size == 1:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return [float(value) for value in shared.tolist()]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value` (plain data), by rank, on every rank."""
        gathered = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(gathered, value)
        return gathered

    def barrier(self) -> None:
        """Wait for everyone."""
        if self.world_size > 1:
            dist.barrier()

    def close(self) -> None:
        """Leave the group."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def alone() -> Group:
    """A group of one, on the GPU when there is one."""
    return Group(0, 1, torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu"))


def join(timeout_seconds: float = TIMEOUT_SECONDS) -> Group:
    """Join the group that torchrun describes in the environment, or be a group of one.

    nccl and one GPU a process when there are GPUs, gloo otherwise. A rank that waits for the others longer than
    timeout_seconds ends with an error.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        return alone()
    local_rank = int(os.environ["LOCAL_RANK"])
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(seconds=timeout_seconds))
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    return Group(dist.get_rank(), world_size, device)
