"""Quantisation in ratios: GPTQ against a plain loop over columns, and what every coder makes of the same symbols.

    python benchmarks/bench_quant.py             the published shapes, two layers of them
    python benchmarks/bench_quant.py --layers 11 --slow    all layers, and lzma

Weights are Gaussian, with spreads of rows and columns as measured on trained ones. The plain loop rounds one column
after the other and corrects all later columns at once, as GPTQ is written down; both run in one process.
"""

import argparse
import math
import shutil
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from pgolf.quant import rans
from pgolf.quant.code import decoder_bytes
from pgolf.quant.coders import CODERS, Coder
from pgolf.quant.gptq import factorise, quantise_columns, row_scales, safe_steps, to_nearest
from pgolf.quant.rans_encoder import Matrix, encode
from pgolf.quant.trellis import encode_path

Result = TypeVar("Result")
Streams = list[list[np.ndarray]]

SHAPES: dict[str, tuple[tuple[int, int], float, float]] = {
    # name: shape, spread of rows, spread of columns (standard deviations of logarithms)
    "c_q": ((512, 512), 0.046, 0.087),
    "c_k": ((256, 512), 0.088, 0.202),
    "c_v": ((256, 512), 0.096, 0.262),
    "proj": ((512, 512), 0.055, 0.094),
    "fc": ((2048, 512), 0.087, 0.044),
    "mlp.proj": ((512, 2048), 0.043, 0.270),
}
EMBEDDING = ((8192, 512), 0.0, 0.089)


def weights(layers: int, embedding: bool) -> dict[str, list[Tensor]]:
    """Name -> a matrix of each layer."""
    generator = torch.Generator().manual_seed(0)

    def draw(shape: tuple[int, int], rows: float, cols: float) -> Tensor:
        spread = (
            torch.randn(shape[0], 1, generator=generator) * rows + torch.randn(1, shape[1], generator=generator) * cols
        )
        return torch.randn(shape, generator=generator) * spread.exp()

    found = {name: [draw(*one) for _ in range(layers)] for name, one in SHAPES.items()}
    return found | ({"tok_emb": [draw(*EMBEDDING)]} if embedding else {})


def hessian(cols: int) -> Tensor:
    """Of correlated inputs of uneven size."""
    generator = torch.Generator().manual_seed(cols)
    inputs = torch.randn(2 * cols, cols, generator=generator) * torch.randn(cols, generator=generator).exp()
    inputs = inputs + 0.5 * inputs.roll(1, dims=1)
    return inputs.t() @ inputs


def plain_gptq(weight: Tensor, scales: Tensor, given: Tensor) -> Tensor:
    """GPTQ as it is written down: one column, then the correction of all that follow."""
    factor = factorise(given)
    remaining, steps, upper = weight[:, factor.order].clone(), safe_steps(scales), factor.upper
    symbols = torch.empty(weight.shape, dtype=torch.int8)
    for at in range(weight.shape[1]):
        rounded = torch.round(remaining[:, at] / steps).clamp(-31, 31)
        error = (remaining[:, at] - rounded * steps) / upper[at, at]
        remaining[:, at:] -= torch.outer(error, upper[at, at:])
        symbols[:, at] = rounded.to(torch.int8)
    return symbols[:, torch.argsort(factor.order)]


def seconds(work: Callable[[], Result], repeats: int) -> tuple[float, Result]:
    """Median time, and the result."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - begun)
    return sorted(times)[len(times) // 2], result


def bench_gptq() -> None:
    """One matrix of each shape of a layer, and the whole layer."""
    print(f"GPTQ, {torch.get_num_threads()} thread(s)")
    print(f"{'matrix':10s} {'shape':>12s} {'plain s':>8s} {'here s':>8s} {'faster':>7s} {'differing':>9s}")
    sums = [0.0, 0.0]
    for name, (one,) in weights(1, embedding=False).items():
        given, scales = hessian(one.shape[1]), row_scales(one, clip_sigmas=12.85, bits=6)
        plain, expected = seconds(partial(plain_gptq, one, scales, given), 1)
        here, got = seconds(partial(blocked_gptq, one, scales, given), 3)
        differing = int((got != expected).sum())
        sums = [sums[0] + plain, sums[1] + here]
        shape = f"{one.shape[0]}x{one.shape[1]}"
        print(f"{name:10s} {shape:>12s} {plain:8.3f} {here:8.3f} {plain / here:6.1f}x {differing:9d}")
    print(f"{'layer':10s} {'':12s} {sums[0]:8.3f} {sums[1]:8.3f} {sums[0] / sums[1]:6.1f}x\n")


def blocked_gptq(weight: Tensor, scales: Tensor, given: Tensor) -> Tensor:
    return quantise_columns(weight, factorise(given), to_nearest(scales, 31))


def symbols_of(matrices: dict[str, list[Tensor]]) -> Streams:
    """Rounded to the nearest, with the clips of the records; int8."""
    streams = []
    for name, stream in matrices.items():
        clip, bits = (15.0, 7) if name == "tok_emb" else (12.0, 6) if name in ("fc", "mlp.proj") else (13.0, 6)
        levels = 2 ** (bits - 1) - 1
        steps = [safe_steps(row_scales(one, clip_sigmas=clip, bits=bits))[:, None] for one in stream]
        rounded = [torch.round(one / step).clamp(-levels, levels) for one, step in zip(stream, steps, strict=True)]
        streams.append([one.to(torch.int8).numpy() for one in rounded])
    return streams


def entropy_bytes(matrix: np.ndarray) -> float:
    counts = np.unique(matrix, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


def told_bytes(streams: Streams) -> float:
    """Entropy of the symbols given the deviation of every column, which no reader is told: the goal of adaptation."""
    total = 0.0
    for matrix in (one for stream in streams for one in stream):
        deviations = matrix.astype(float).std(axis=0)
        total += float(np.log2(deviations * math.sqrt(2 * math.pi * math.e)).sum()) * len(matrix) / 8
    return total


def through_bytes(coder: Coder, streams: Streams) -> tuple[int, float, float]:
    """Size, and seconds to encode and to decode, of a coder of bytes."""
    raw = [b"".join(one.T.tobytes() for one in stream) for stream in streams]
    encode_s, coded = seconds(lambda: [coder.encode(one) for one in raw], 1)
    decode_s, back = seconds(lambda: [coder.decode(one, len(data)) for one, data in zip(coded, raw, strict=True)], 1)
    if back != raw:
        raise SystemExit("a coder does not give back what it was given")
    return sum(map(len, coded)), encode_s, decode_s


def through_matrices(streams: Streams) -> tuple[int, float, float]:
    """The same of the coder of matrices."""
    shapes = [[(one.shape[0], one.shape[1]) for one in stream] for stream in streams]
    encode_s, coded = seconds(lambda: encode([[Matrix(one) for one in stream] for stream in streams]), 1)
    decode_s, back = seconds(lambda: rans.decode(coded, shapes), 1)
    pairs = ((a, b) for x, y in zip(back, streams, strict=True) for a, b in zip(x, y, strict=True))
    if not all(np.array_equal(a, b) for a, b in pairs):
        raise SystemExit("rans does not give back what it was given")
    return sum(map(len, coded)), encode_s, decode_s


def bench_coders(layers: int, slow: bool) -> None:
    """Bytes, ratios and seconds of every coder on the same symbols, column by column; blocks of a kind together."""
    streams = symbols_of(weights(layers, embedding=True))
    count = sum(one.size for stream in streams for one in stream)
    entropy, told = sum(entropy_bytes(one) for stream in streams for one in stream), told_bytes(streams)
    print(f"coders on {count:,} symbols")
    print(f"order-0 entropy {entropy:,.0f} bytes; conditional entropy, every column's deviation known, {told:,.0f}")
    left_out = {"none"} | (set() if slow else {"lzma"}) | (set() if shutil.which("lrzip") else {"lrzip"})
    print(f"left out: {', '.join(sorted(left_out))} (lzma: --slow; lrzip: where it is installed)")
    rows = {}
    for name in sorted(CODERS.keys() - left_out):
        coder = CODERS[name]
        rows[name] = through_matrices(streams) if coder.matrices else through_bytes(coder, streams)
    heads = ("/ brotli", "/ order 0", "/ conditional", "encode s", "decode s", "code bytes")
    print(f"{'coder':8s} {'bytes':>12s} " + " ".join(f"{head:>13s}" for head in heads))
    for name, (size, encode_s, decode_s) in rows.items():
        ratios = " ".join(f"{size / other:13.4f}" for other in (rows["brotli"][0], entropy, told))
        print(f"{name:8s} {size:12,d} {ratios} {encode_s:13.2f} {decode_s:13.2f} {decoder_bytes(name):13d}")
    print()


def bench_trellis() -> None:
    """Error at equal entropy of trellis-coded symbols, and the time of a column."""
    values = np.random.default_rng(0).standard_normal(1 << 16).astype(np.float32) * 2.4
    plain = np.round(values)
    base = entropy_bytes(plain) * 8 / len(values) + 0.5 * math.log2(float(np.mean((values - plain) ** 2)))
    print("trellis-coded quantisation of Gaussian values at 3.3 bits")
    for segment in (32, 64, 128, 256):
        symbols, decoded = encode_path(values, np.ones_like(values), segment)
        bits = entropy_bytes(symbols) * 8 / len(values) + 0.5 * math.log2(float(np.mean((values - decoded) ** 2)))
        column, _ = seconds(partial(encode_path, values[:512], np.ones(512, np.float32), segment), 21)
        saved, milliseconds = base - bits, 1000 * column
        print(f"  paths of {segment:3d} rows: {saved:.3f} bit a weight saved; 512 rows in {milliseconds:.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2, help="layers of matrices for the coders (published: 11)")
    parser.add_argument("--slow", action="store_true", help="also lzma")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bench_gptq()
    bench_coders(arguments.layers, arguments.slow)
    bench_trellis()


if __name__ == "__main__":
    main()
