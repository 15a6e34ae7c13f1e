"""Objectives, batches and gradients that the tests of this folder share. Also a program: see `main`."""

import sys
from pathlib import Path

import torch
from torch import Tensor

from pgolf.app.machine import leave
from pgolf.data.loaders import Batch
from pgolf.distributed import Group
from pgolf.kernels.attend import sdpa
from pgolf.kernels.packing import Packing
from pgolf.model.context import Context
from pgolf.model.gpt import GPT
from pgolf.optim.schedule import Position
from pgolf.train.loss.byte_weights import ByteWeights
from pgolf.train.loss.linear_span import LinearSpan
from pgolf.train.loss.multi_token import MultiToken
from pgolf.train.loss.objective import Given, Objective, Running, attach
from pgolf.train.loss.z_loss import ZLoss
from tests.support import ALONE, tiny_model

SEED = 3
BYTES = [1 + 7 * token % 13 for token in range(64)]  # unlike for neighbouring ids
SPACES = [token % 3 == 0 for token in range(64)]
MIDDLE = Position(10, 0.5)


def everything() -> Objective:
    """All terms at once."""
    terms = {
        "z": ZLoss(coefficient=0.01),
        "multi_token": MultiToken(heads=2, weight=0.2),
        "span": LinearSpan(coefficient=0.3, max_span_fraction=0.5, layer=-1, start=0.1),
    }
    return Objective(weights=ByteWeights(power=1.0, most=None, spaces=True), label_smoothing=0.1, terms=terms)


def running(objective: Objective) -> Running:
    """The objective in a run, on 64 tokens of 1 to 13 bytes."""
    return objective.run(SEED, lambda: (BYTES, SPACES))


def model_for(objective: Objective) -> GPT:
    """A scrambled model, with heads that are not zero."""
    model = tiny_model(num_layers=3, scramble=0.1)
    attach(model, objective.heads(model), SEED)
    for name, parameter in model.named_parameters():
        if name.startswith("training_only"):
            torch.nn.init.normal_(parameter, 0.0, 0.2, torch.Generator().manual_seed(len(name)))
    return model


def rows(number: int, count: int = 2, length: int = 24) -> Batch:
    """Rows of random tokens, each with a document that begins in its middle; every batch of other tokens."""
    tokens = torch.randint(4 + 3 * number, 64, (count, length + 1), generator=torch.Generator().manual_seed(number))
    tokens[:, length // 2] = 1
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), None)


def packed(number: int, cuts: tuple[int, ...] = (0, 20, 23, 48)) -> Batch:
    """Documents in one row."""
    tokens = torch.randint(4, 64, (1, cuts[-1] + 1), generator=torch.Generator().manual_seed(number))
    tokens[0, list(cuts[:-1])] = 1
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), torch.tensor(cuts, dtype=torch.int32))


def context_of(batch: Batch) -> Context:
    """The context that a batch is read in."""
    return Context(sdpa, None if batch.cu_seqlens is None else Packing.from_cu_seqlens(batch.cu_seqlens))


def loss_of(objective: Running, model: GPT, batch: Batch, given: Given, function=None):
    """(objective, parts) of a micro-batch."""
    return (function or objective.loss_of)(model, batch.inputs, batch.targets, context_of(batch), given)


def gradients(
    objective: Running, model: GPT, batches: list[Batch], group: Group = ALONE
) -> tuple[float, dict[str, Tensor]]:
    """The objective of a step and its gradient, averaged over micro-batches and ranks as the training loop does."""
    model.zero_grad()
    total = torch.zeros(())
    for batch, given in zip(batches, objective.given(batches, MIDDLE, group), strict=True):
        loss = loss_of(objective, model, batch, given)[0] / len(batches)
        loss.backward()
        total += loss.detach()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    group.mean_([total, *found.values()])
    return float(total), found


def main(out: Path) -> None:
    """One micro-batch a rank, the rank's own; the leader writes what came of it."""
    from pgolf import distributed

    torch.set_num_threads(1)
    group = distributed.join()
    objective = everything()
    found = gradients(running(objective), model_for(objective), [rows(group.rank)], group)
    if group.leads:
        torch.save(found, out)
    group.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave(0)
