"""Every attention back end that works here, forward and backward, on packed rows of several shapes.

    python benchmarks/bench_attend.py [--device cuda] [--heads 8 --kv-heads 4 --head-dim 64] [--tokens 16384]

Prints the error of each against the plain reference on a short row, then a line a layout: milliseconds (median of
alternating calls), also of `padded`, the baseline: the documents of the row as one batch padded to the longest. It is
left out where that batch is more than `--padding` rows large.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from pgolf.app.machine import prepare_process

prepare_process()

from pgolf.kernels import attend  # noqa: E402
from pgolf.kernels.documents import dense  # noqa: E402
from pgolf.kernels.packing import Packing  # noqa: E402
from pgolf.kernels.reference import reference  # noqa: E402

Work = Callable[[], object]


def layouts(tokens: int) -> dict[str, list[int]]:
    """Boundaries of rows of `tokens` tokens."""
    generator = torch.Generator().manual_seed(0)
    uneven = torch.randn(tokens, generator=generator).mul(1.2).add(5.5).exp().long().clamp(2, 2048).cumsum(0).tolist()
    return {
        "200-token documents": [*range(0, tokens, 200), tokens],
        "16-token documents": [*range(0, tokens, 16), tokens],
        "uneven, at most 2048": [0, *(end for end in uneven if end < tokens), tokens],
        "half a document, then 200": [0, *range(tokens // 2, tokens, 200), tokens],
        "one document": [0, tokens],
    }


def padded(boundaries: list[int], device: torch.device) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Attention over the documents as one batch, padded on the right."""
    ends = torch.tensor(boundaries, device=device)
    starts, lengths = ends[:-1], ends.diff()
    columns = torch.arange(int(lengths.max()), device=device)
    valid = columns[None, :] < lengths[:, None]
    gather = torch.where(valid, starts[:, None] + columns[None, :], 0)
    scatter = valid.flatten().nonzero().squeeze(1)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = [x[0].index_select(0, gather.flatten()).unflatten(0, gather.shape) for x in (q, k, v)]
        return dense(*rows).flatten(0, 1).index_select(0, scatter)[None]

    return attention


def milliseconds(work: dict[str, Work], repeats: int, device: torch.device) -> dict[str, float]:
    """Median of each, alternating, after one call each to warm up."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repeats + 1):
        for name, action in work.items():
            begun = time.perf_counter()
            action()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                times[name].append(1e3 * (time.perf_counter() - begun))
    return {name: statistics.median(values) for name, values in times.items()}


def inputs(options: argparse.Namespace, tokens: int, device: torch.device) -> list[Tensor]:
    """Random q, k, v that want gradients, in the usual dtype of the device."""
    dtype = attend.usual_dtype(device)
    heads = (options.heads, options.kv_heads, options.kv_heads)
    shapes = [(1, tokens, each, options.head_dim) for each in heads]
    return [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for shape in shapes]


def forward_and_backward(attention: Callable[..., Tensor], tensors: list[Tensor], *rest: object) -> Work:
    """One call with gradients of q, k and v."""
    slope = torch.randn_like(tensors[0])
    return lambda: torch.autograd.grad(attention(*tensors, *rest), tensors, slope)


def error(attention: Callable[..., Tensor], options: argparse.Namespace, device: torch.device) -> float:
    """Largest error of output and gradients on a short packed row, relative to the largest value of the reference."""
    tensors = inputs(options, 500, device)
    packing = Packing.from_cu_seqlens(torch.tensor([0, 3, 3, 200, 500, 500])).to(device)
    slope = torch.randn_like(tensors[0])
    got, expected = (
        [(out := function(*tensors, packing)), *torch.autograd.grad(out, tensors, slope)]
        for function in (attention, reference)
    )
    pairs = zip(got, expected, strict=True)
    return max(float((a.detach() - b.detach()).abs().max() / b.detach().abs().max()) for a, b in pairs)


def parsed() -> argparse.Namespace:
    """The command line; what is not given depends on the device."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--heads", type=int, default=8)
    made.add_argument("--kv-heads", type=int, default=4)
    made.add_argument("--head-dim", type=int, default=64)
    made.add_argument("--tokens", type=int, help="of a row (98,304 on a GPU, 4,096 on a CPU)")
    made.add_argument("--repeats", type=int, help="20 on a GPU, 3 on a CPU")
    made.add_argument("--padding", type=float, default=8.0, help="largest padded batch that is tried, in rows")
    options = made.parse_args()
    on_gpu = options.device.startswith("cuda")
    options.tokens = options.tokens or (98_304 if on_gpu else 4096)
    options.repeats = options.repeats or (20 if on_gpu else 3)
    return options


def main() -> None:
    """Print what works, its error, and its time on each layout."""
    options = parsed()
    device = torch.device(options.device)
    works = {}
    print(f"{options.tokens:,} tokens, {options.heads} heads on {options.kv_heads}, {options.head_dim} wide")
    for name, load in attend.BACKENDS.items():
        reason = attend.probe(name, device)
        if not reason:
            works[name] = load()
        print(f"  {name}: {reason or f'relative error {error(works[name], options, device):.1e}'}")
    for layout, boundaries in layouts(options.tokens).items():
        packing = Packing.from_cu_seqlens(torch.tensor(boundaries)).to(device)
        tensors = inputs(options, options.tokens, device)
        work = {name: forward_and_backward(attention, tensors, packing) for name, attention in works.items()}
        documents = len(boundaries) - 1
        if documents * packing.max_seqlen <= options.padding * options.tokens:
            work["padded"] = forward_and_backward(padded(boundaries, device), tensors)
        measured = milliseconds(work, options.repeats, device)
        line = [f"{name} {value:.2f} ms{_against(value, measured.get('padded'))}" for name, value in measured.items()]
        print(f"{layout:26s} {documents:5d} documents: {', '.join(line)}", flush=True)


def _against(value: float, padded: float | None) -> str:
    return "" if padded is None or value == padded else f" (padded is {padded / value:.2f} times that)"


if __name__ == "__main__":
    main()
