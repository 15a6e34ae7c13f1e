"""The loss of a micro-batch as steps take it: compiled where asked for, and rehearsed, before the clock starts."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from pgolf.console import Console
from pgolf.data.loaders import Batch
from pgolf.distributed import Group
from pgolf.errors import UserError
from pgolf.kernels.attend import Attention
from pgolf.kernels.fused.kernels import Fused
from pgolf.model.context import Context
from pgolf.model.gpt import GPT
from pgolf.train.batches import batch_loss, gives_whole_rows
from pgolf.train.loss.forward import Loss, loss_of
from pgolf.train.loss.objective import Given, Running
from pgolf.train.refusals import sequence_lengths
from pgolf.train.state import Session
from pgolf.train.warmup import LossOfBatch, rehearse, shapes_once, synthetic

if TYPE_CHECKING:
    from pgolf.train.loop import Trainer


def prepared_loss(
    train: "Trainer",
    session: Session,
    attention: Attention,
    group: Group,
    console: Console,
    running: Running | None,
    fused: Fused,
) -> Callable[..., Loss]:
    """The loss of a micro-batch, compiled where asked for and rehearsed, so that no step waits for that."""
    model, device = session.model, group.device
    function = loss_of if running is None else running.loss_of

    def plain(batch: Batch, longest: int, *given: Given) -> Loss:
        return batch_loss(model, batch, attention, device, longest, function, *given, fused=fused)

    compiles = _compiles(train.compile, device, console)
    if not compiles and train.warmup is None and not fused.names:
        return plain
    rows, bucket = gives_whole_rows(train.loader), getattr(session.loader.loader, "bucket", 1)
    batches = synthetic(rows, train.micro_batch_tokens, sequence_lengths(train), model.vocab_size, bucket)

    def compiled(batch: Batch, longest: int, *given: Given) -> Loss:
        return batch_loss(model, batch, attention, device, longest, graph, *given, fused=fused)

    def rehearsed(loss: Callable[..., Loss]) -> LossOfBatch:
        return lambda batch, longest: loss(batch, longest, *(running.alone(batch) if running else ()))[0]

    loss, shapes = plain, train.course(list(model.plans)).shapes()
    if compiles:
        # a loss is compiled anew for every shape
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 8 * len(shapes))
        graph = _for_any_number_of_documents(torch.compile(function))
        if _compiler_works(train.compile is True, session, rehearsed(compiled), group, console, batches, shapes):
            loss = compiled
    if loss is plain and fused.names:  # the kernels themselves are compiled when they first run
        shapes_once(model, session.optimizers, rehearsed(plain), batches, shapes)
    if train.warmup is not None:
        rehearse(model, session.optimizers, session.clip, group, rehearsed(loss), batches, train.warmup)
    return loss


def _for_any_number_of_documents(graph: Callable[..., Loss]) -> Callable[..., Loss]:
    """The compiled loss, which is told that rows have any number of documents: else the first row with another number
    than the rehearsed one would be compiled anew, and steps would wait for that."""

    def told(model: GPT, inputs: Tensor, targets: Tensor, context: Context, *given: Given) -> Loss:
        if (packing := context.packing) is not None:
            counts = (len(packing.boundaries), len(packing.boundaries) - 1)  # boundaries; pieces, which terms know
            facts = [fact for one in given for several in one.facts for fact in several]
            for tensor in (packing.cu_seqlens, packing.boundaries, *facts):
                for dim in (dim for dim, size in enumerate(tensor.shape) if size in counts):
                    torch._dynamo.maybe_mark_dynamic(tensor, dim)
        return graph(model, inputs, targets, context, *given)

    return told


def _compiles(choice: bool | Literal["auto"], device: torch.device, console: Console) -> bool:
    """Whether the loss is compiled; says why where that was left to pgolf."""
    if choice != "auto":
        return choice
    on_gpu = device.type == "cuda"
    told = "compiling, off the clock" if on_gpu else "not compiling: on a CPU it takes longer than it saves"
    console.say(f"train.compile=auto: {told}")
    return on_gpu


def _compiler_works(
    required: bool,
    session: Session,
    loss: LossOfBatch,
    group: Group,
    console: Console,
    batches: dict[int, Batch],
    shapes: list[tuple[str, int]],
) -> bool:
    """Compile every shape that training comes to; False, and a remark, where that fails on any rank. UserError
    where it was asked for."""
    failure = None
    try:
        shapes_once(session.model, session.optimizers, loss, batches, shapes)
    except Exception as error:  # whatever a compiler may raise
        lines = str(error).strip().splitlines()
        failure = f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
    reason = next((one for one in group.gather(failure) if one is not None), None)
    if reason is not None and required:
        raise UserError(f"train.compile=true, but torch.compile fails here: {reason}")
    if reason is not None:
        console.say(f"torch.compile fails here, so training goes on without it ({reason})")
    return reason is None
