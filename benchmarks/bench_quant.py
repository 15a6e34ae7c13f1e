"""Quantisation in ratios: GPTQ against a plain loop over columns, and what a trellis saves. Coders: bench_coders.py.

    python benchmarks/bench_quant.py

Weights are Gaussian, with spreads of rows and columns as measured on trained ones. The plain loop rounds one column
after the other and corrects all later columns at once, as GPTQ is written down; both run in one process.
"""

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from pgolf.quant.gptq import factorise, quantise_columns, row_scales, safe_steps, to_nearest
from pgolf.quant.trellis import encode_path

Result = TypeVar("Result")

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
EMBEDDING_CLIP = (15.0, 7)
"""Standard deviations of the clip, and bits."""


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


def entropy_bytes(symbols: np.ndarray) -> float:
    """Order-0 entropy."""
    counts = np.unique(symbols, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


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
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bench_gptq()
    bench_trellis()


if __name__ == "__main__":
    main()
