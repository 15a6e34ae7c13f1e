"""From a loader's micro-batch to a loss: how long its sequences are in this stage, and what it costs to wait for it."""

import functools
import time
from collections.abc import Callable

import torch

from pgolf.data.loaders import Batch, Loader
from pgolf.data.loaders.batch import MakeLoader
from pgolf.kernels.attend import Attention
from pgolf.kernels.fused.kernels import UNFUSED, Fused
from pgolf.kernels.packing import Packing, build_cu_seqlens
from pgolf.model.context import Context
from pgolf.model.gpt import GPT
from pgolf.train.loss.forward import Loss, loss_of
from pgolf.train.loss.objective import Given


class Taken:
    """The batches of one step as they were taken, and the seconds spent waiting for them.

    sequence_tokens: cut what the loader gives into sequences of at most so many; None: it has done so. Batches that
    were drawn ahead are cut when they are taken, so none is lost when the length changes. bucket: the number of
    boundaries of a packed row is padded to a multiple of it. given: what an objective gives each of them.
    """

    def __init__(self, loader: Loader, sequence_tokens: int | None = None, bucket: int = 1) -> None:
        self.loader, self.sequence_tokens, self.bucket = loader, sequence_tokens, bucket
        self.seconds = 0.0
        self.batches: list[Batch] = []
        self.given: list[Given] = []

    def next(self) -> Batch:
        """The loader's next batch."""
        begun = time.perf_counter()
        batch = self.loader.next()
        if self.sequence_tokens is not None:
            batch = cut(batch, self.sequence_tokens, self.bucket)
        self.batches.append(batch)
        self.seconds += time.perf_counter() - begun
        return batch


def cut(batch: Batch, sequence_tokens: int, bucket: int = 1) -> Batch:
    """The same tokens in sequences of at most `sequence_tokens`: rows in equal parts, documents from their start.

    The rows of a batch that is not packed must be a multiple of sequence_tokens long.
    """
    if batch.cu_seqlens is None:
        inputs, targets = (rows.reshape(-1, sequence_tokens) for rows in (batch.inputs, batch.targets))
        return Batch(inputs, targets, None)
    total = batch.inputs.shape[1]
    starts = torch.unique(batch.cu_seqlens)
    boundaries = build_cu_seqlens(starts[starts < total].numpy(), total, sequence_tokens, bucket)
    return batch._replace(cu_seqlens=boundaries)


def batch_loss(
    model: GPT,
    batch: Batch,
    attention: Attention,
    device: torch.device,
    longest: int,
    loss: Callable[..., Loss] = loss_of,
    *given: Given,
    fused: Fused = UNFUSED,
) -> Loss:
    """The loss of one micro-batch; packed documents, and rows, do not see each other. longest: tokens of the longest
    piece that the loader gives, a constant of a stage: what depends on it is compiled once. loss: `loss_of`, or what
    was compiled from it; or that of an objective, with what that is `given`. fused: kernels for its parts."""
    packing = None
    if batch.cu_seqlens is not None:
        packing = Packing.from_cu_seqlens(batch.cu_seqlens, longest).to(device)
    # flattened first: a packed row keeps the stride of what it was cut from, and a graph is compiled for its strides
    rows = (tokens.flatten().view(tokens.shape) for tokens in (batch.inputs, batch.targets))
    inputs, targets = (tokens.to(device, non_blocking=True) for tokens in rows)
    return loss(model, inputs, targets, Context(attention, packing, fused=fused), *(one.to(device) for one in given))


def gives_whole_rows(loader: MakeLoader) -> bool:
    """Whether the loader that this factory makes cuts a micro-batch into rows of sequence_tokens."""
    made = loader.func if isinstance(loader, functools.partial) else loader
    return bool(getattr(made, "whole_rows", False))
