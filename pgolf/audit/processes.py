"""M1: several processes share the work. They are threads here, so that any machine can probe it."""

import copy
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pgolf.audit.checks import Check, Verdict, not_probed
from pgolf.audit.policies import Policies
from pgolf.audit.recorder import fingerprint
from pgolf.audit.trace import Stage, Trace
from pgolf.distributed import Group
from pgolf.score.ledger import RuleBroken, Total
from pgolf.score.scorer import Scorer

WORLD_SIZE = 2
TOLERANCE = 1e-6
NOISE_RUNS = 3
NOISE_MARGIN = 10.0  # two processes differ by more than one rounding of each weight
PATIENCE_SECONDS = 300.0


class Meeting:
    """Where threads exchange one value each; the answer is the list of all, by rank."""

    def __init__(self, world_size: int) -> None:
        self._values: list[Any] = [None] * world_size
        self._barrier = threading.Barrier(world_size, timeout=PATIENCE_SECONDS)

    def exchange(self, rank: int, value: Any) -> list[Any]:
        """Wait until every rank has given its value. BrokenBarrierError when one has failed or does not come."""
        self._values[rank] = value
        self._barrier.wait()
        values = list(self._values)
        self._barrier.wait()
        return values

    def give_up(self) -> None:
        """Let nobody wait any more."""
        self._barrier.abort()


class ThreadGroup(Group):
    """A group whose ranks are threads of this process."""

    def __init__(self, rank: int, world_size: int, device: torch.device, meeting: Meeting) -> None:
        super().__init__(rank, world_size, device)
        self._meeting = meeting

    def sum_(self, tensor: Tensor) -> Tensor:
        """As `Group.sum_`; summed in the order of the ranks."""
        parts = self._meeting.exchange(self.rank, tensor.detach().clone())
        return tensor.copy_(torch.stack(parts).sum(0))

    def mean_(self, tensors: Iterable[Tensor]) -> None:
        """As `Group.mean_`."""
        for tensor in tensors:
            self.sum_(tensor).div_(self.world_size)

    def from_leader(self, value: float) -> float:
        """As `Group.from_leader`."""
        return float(self._meeting.exchange(self.rank, value)[0])

    def largest(self, values: Sequence[float]) -> list[float]:
        """As `Group.largest`."""
        return [max(column) for column in zip(*self._meeting.exchange(self.rank, list(values)), strict=True)]

    def gather(self, value: Any) -> list[Any]:
        """As `Group.gather`."""
        return self._meeting.exchange(self.rank, copy.deepcopy(value))

    def barrier(self) -> None:
        """As `Group.barrier`."""
        self._meeting.exchange(self.rank, None)


def in_threads(device: torch.device, work: Callable[[Group], Any]) -> list[Any]:
    """What `work` gives on each rank. Raises the first rank's own failure, not the broken meetings that follow it."""
    meeting = Meeting(WORLD_SIZE)
    results: list[Any] = [None] * WORLD_SIZE
    failures: list[Exception] = []

    def one(rank: int) -> None:
        try:
            results[rank] = work(ThreadGroup(rank, WORLD_SIZE, device, meeting))
        except Exception as error:
            failures.append(error)
            meeting.give_up()

    threads = [threading.Thread(target=one, args=(rank,), daemon=True) for rank in range(WORLD_SIZE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise next((error for error in failures if not isinstance(error, threading.BrokenBarrierError)), failures[0])
    return results


def rounding_noise(stage: Stage, alone: Total) -> float:
    """How far the nats of one process move, as a part of their sum, when every weight moves by one unit in its last
    place: the largest of NOISE_RUNS random choices of the directions.

    Processes that share work add the same numbers in another order, so a strategy that learns fast enough to amplify
    such noise cannot give the same digits twice, however well it shares.
    """
    largest = 0.0
    for seed in range(NOISE_RUNS):
        model, generator = copy.deepcopy(stage.model), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                upward = torch.rand(parameter.shape, generator=generator).to(parameter.device) < 0.5
                ends = torch.where(upward, torch.inf, -torch.inf).to(parameter.dtype)
                parameter.copy_(torch.nextafter(parameter, ends))
        scorer = Scorer(stage.sample, stage.group)
        stage.act(model, scorer, replace(stage.bench))
        largest = max(largest, abs(scorer.ledger.total().nats - alone.nats) / max(alone.nats, 1e-12))
    return largest


def process_check(stage: Stage, first: Trace, policies: Policies) -> Check:
    """M1: the sum of two ranks' ledgers against the ledger of one, and the weights that each rank ends with.

    Where they differ by more than TOLERANCE of the sum, they may differ by NOISE_MARGIN times what rounding alone does.
    """

    def work(group: Group) -> tuple[Total, str]:
        model = copy.deepcopy(stage.model)
        scorer = Scorer(stage.sample, group)
        stage.act(model, scorer, replace(stage.bench))
        scorer.synchronise()
        return scorer.ledger.total(), fingerprint(model)

    try:
        alone = first.scorer.total()
    except RuleBroken as broken:
        return not_probed("M1", f"one process has no total to compare with: {broken}")
    try:
        found = in_threads(stage.group.device, work)
    except RuleBroken as broken:
        return not_probed("M1", f"it scores on one process alone: two are stopped ({broken})")
    except Exception as error:
        return not_probed("M1", f"the strategy does not run on two processes here: {type(error).__name__}: {error}")
    totals, weights = [total for total, _ in found], {name for _, name in found}
    apart = max(abs(total.nats - alone.nats) / max(alone.nats, 1e-12) for total in totals)
    counted = all((total.tokens, total.bytes) == (alone.tokens, alone.bytes) for total in totals)
    same = counted and len(weights) == 1
    null = rounding_noise(stage, alone) if same and apart > TOLERANCE else None
    bound = max(TOLERANCE, NOISE_MARGIN * (null or 0.0))
    detail = f"{alone.tokens} tokens, nats differ by {apart:.2g} of their sum (allowed {bound:.0e})"
    if null is not None:
        detail += f"; one unit in the last place of the weights moves them by {null:.2g}"
    if not counted:
        counts = ", ".join(f"{total.tokens} tokens of {total.bytes} bytes" for total in totals)
        detail = f"one process has {alone.tokens} tokens of {alone.bytes} bytes, the two {counts}"
    elif not same:
        detail += "; the two end with different weights"
    if apart > bound:
        detail += f" (policy audit.processes={policies.processes})"
    allowed = same and policies.processes == "any"
    verdict: Verdict = "pass" if same and apart <= bound else "allowed" if allowed else "fail"
    return Check("M1", verdict, WORLD_SIZE, apart, detail, null)
