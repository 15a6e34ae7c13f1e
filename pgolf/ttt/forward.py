"""The one forward of scoring, as it is written or compiled."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pgolf.model.context import Context
from pgolf.model.gpt import GPT
from pgolf.ttt.lora import LoraRows

Forward = Callable[[GPT, Tensor, Tensor, Context], Tensor]
"""As `log_probs_at`."""

GRAPHS = 128
"""That one function may have. A run makes few: without adapters, or with them with gradients and without; each for one
row and for several. Parts that cut rows into powers of two (model/running_mean) need one for each."""


def log_probs_at(model: GPT, tokens: Tensor, columns: Tensor, context: Context) -> Tensor:
    """What follows the given columns of each row: tokens int64 [B, T], columns int64 [B, C] -> log-probabilities fp32
    [B, C, V]."""
    hidden = model(tokens, context)
    wanted = hidden.gather(1, columns[..., None].expand(-1, -1, hidden.shape[-1]))
    return torch.log_softmax(model.logits(wanted, context), dim=-1)


def compiled() -> Forward:
    """`log_probs_at` through torch.compile, for any number of rows, columns and documents: windows grow and documents
    end, and a graph for each would take longer than the scores. Graphs are made when they are first met.

    A size of one is a graph of its own to the compiler: a single column is handed in twice, a single row is that graph,
    and a window of a single token, which occurs once in a document at most, goes as it is written.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    graph = torch.compile(log_probs_at)

    def forward(model: GPT, tokens: Tensor, columns: Tensor, context: Context) -> Tensor:
        if tokens.shape[1] == 1:
            return log_probs_at(model, tokens, columns, context)
        if columns.shape[1] == 1:
            return forward(model, tokens, columns.repeat(1, 2), context)[:, :1]
        for tensor, dims in _varying(tokens, columns, context):
            for dim in dims:
                torch._dynamo.maybe_mark_dynamic(tensor, dim)
        return graph(model, tokens, columns, context)

    return forward


def why_not(device: torch.device) -> str:
    """Compile next to nothing on `device`; "" or, in a line, why that fails."""
    try:
        torch.compile(torch.sinh)(torch.ones(2, device=device))
    except Exception as error:  # whatever a compiler may raise
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
    return ""


def _varying(tokens: Tensor, columns: Tensor, context: Context) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
    """The tensors with sizes that change from call to call, and which of their sizes do."""
    yield tokens, (0, 1)
    yield columns, (0, 1)
    if context.packing is not None:
        yield context.packing.cu_seqlens, (0,)
        yield context.packing.boundaries, (0,)
    if isinstance(context.adapters, LoraRows):
        for tensor in context.adapters.tensors():
            yield tensor, (0,)
