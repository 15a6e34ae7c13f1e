"""What every coder makes of the same symbols: whole artifacts, in bytes, ratios and seconds.

    python benchmarks/bench_coders.py runs/default-1a2b3c4d-seed42      a trained model's artifact, coded anew
    python benchmarks/bench_coders.py --layers 11 --coders brotli,rans  36 million Gaussian weights, published shapes

The baseline is what the records ship: torch.save of the parts, bytes split into two planes, brotli 11. Sizes are whole
files with their headers, decoding is `container.read` of the file, seconds are those of the CPU. Synthetic weights have
spreads of rows and columns as measured on trained ones; `steps on a grid` stores the step of a row as a power of
2^(1/16) instead of a float16.
"""

import argparse
import io
import shutil
import tempfile
import time
from pathlib import Path

import brotli
import numpy as np
import torch
from bench_quant import EMBEDDING_CLIP, weights
from torch import Tensor

from pgolf.quant import container, packer
from pgolf.quant.account import account, total
from pgolf.quant.code import decoder_bytes
from pgolf.quant.coders import CODERS, shuffle_bytes
from pgolf.quant.container import StoredTensor
from pgolf.quant.encoded import Encoded, grid_steps
from pgolf.quant.gptq import row_scales, safe_steps

COLUMNS = ("coder", "rows", "bytes", "/ baseline", "/ order 0", "/ adaptive", "encode s", "decode s", "code bytes")


def synthetic(layers: int, grid: bool) -> list[StoredTensor]:
    """Rounded Gaussian weights with the clips of the records; steps of rows in float16, or on the logarithmic grid."""
    tensors = []
    for name, matrices in weights(layers, embedding=True).items():
        clip, bits = EMBEDDING_CLIP if name == "tok_emb" else (12.0, 6) if name in ("fc", "mlp.proj") else (13.0, 6)
        role = "embedding" if name == "tok_emb" else "matrix"
        for layer, matrix in enumerate(matrices):
            encoded = _encode(matrix, safe_steps(row_scales(matrix, clip_sigmas=clip, bits=bits)), bits, grid)
            tensors.append(StoredTensor(f"blocks.{layer}.{name}.weight", role, "float32", encoded))
    return tensors


def _encode(matrix: Tensor, steps: Tensor, bits: int, grid: bool) -> Encoded:
    levels = 2 ** (bits - 1) - 1
    exponents = torch.round(16 * steps.log2()).to(torch.int16)
    used = grid_steps(exponents) if grid else steps
    symbols = torch.round(matrix / used[:, None]).clamp(-levels, levels).to(torch.int8).numpy()
    side = {"steps": exponents.numpy()} if grid else {"scales": steps.half().numpy()}
    return Encoded("steps" if grid else "rows", f"int{bits}", tuple(matrix.shape), {"symbols": symbols, **side})


def baseline_bytes(tensors: list[StoredTensor]) -> tuple[int, float, float]:
    """torch.save, byte shuffle, brotli 11: size, seconds to encode and to decode."""
    state = {
        f"{tensor.name}.{part}": torch.from_numpy(np.ascontiguousarray(array))
        for tensor in tensors
        for part, array in tensor.encoded.parts.items()
    }
    begun = time.process_time()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    packed = brotli.compress(shuffle_bytes(buffer.getvalue(), 2), quality=11)
    middle = time.process_time()
    brotli.decompress(packed)
    return len(packed), middle - begun, time.process_time() - middle


def bench(title: str, tensors: list[StoredTensor], coders: list[str], baseline: int, folder: Path) -> None:
    """One row for each coder; brotli and lrzip also with rows in the order of similarity where that was asked for."""
    measured = []
    for word in coders:
        coder, _, order = word.partition("+")
        path = folder / "artifact.pgolf"
        begun = time.process_time()
        sort: packer.RowOrder = "similarity" if order else "stored"
        packer.write(path, tensors, {}, coder=coder, row_order=sort)
        middle = time.process_time()
        read, _ = container.read(path)
        ended = time.process_time()
        for before, after in zip(tensors, read, strict=True):
            if not np.array_equal(before.encoded.parts["symbols"], after.encoded.parts["symbols"]):
                raise SystemExit(f"{word} does not give back what it was given")
        symbols = sum(one.coded for one in container.read_header(path)[0].streams if "/symbols/" in one.name)
        measured.append((coder, sort, path.stat().st_size, symbols, middle - begun, ended - middle))
    packer.write(folder / "artifact.pgolf", tensors, {}, coder="none")
    sums = total(account(folder / "artifact.pgolf")["classes"])
    print(f"\n{title}: {sums['symbols']:,} symbols, baseline {baseline:,} bytes")
    print(f"symbols alone: order-0 entropy {sums['entropy_bytes']:,.0f} bytes, adaptive {sums['adaptive_bytes']:,.0f}")
    print(" ".join(f"{one:>12s}" for one in COLUMNS))
    for coder, sort, size, symbols, encode_s, decode_s in measured:
        ratios = [size / baseline, symbols / sums["entropy_bytes"], symbols / sums["adaptive_bytes"]]
        print(
            f"{coder:>12s} {sort:>12s} {size:12,d} "
            + " ".join(f"{ratio:12.4f}" for ratio in ratios)
            + f" {encode_s:12.2f} {decode_s:12.2f} {decoder_bytes(coder):12,d}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", nargs="*", type=Path, help="artifact.pgolf or run directories; none: synthetic")
    parser.add_argument("--layers", type=int, default=2, help="layers of synthetic matrices (published: 11)")
    every = [name for name in CODERS if name != "lrzip" or shutil.which("lrzip")]
    parser.add_argument(
        "--coders",
        default=",".join([*every, "brotli+similarity"]),
        help="separated by commas; +similarity sorts the rows (default: %(default)s)",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not shutil.which("lrzip"):
        print("lrzip is not installed and left out")
    coders = arguments.coders.split(",")
    with tempfile.TemporaryDirectory() as folder:
        for given in arguments.artifacts:
            path = given / "artifact.pgolf" if given.is_dir() else given
            tensors = [one for one in container.read(path)[0] if "symbols" in one.encoded.parts]
            baseline, encode_s, decode_s = baseline_bytes(tensors)
            bench(str(given), tensors, coders, baseline, Path(folder))
            print(f"{'baseline':>12s} {'':12s} {baseline:12,d} {1:12.4f} {'':25s} {encode_s:12.2f} {decode_s:12.2f}")
        if not arguments.artifacts:
            tensors = synthetic(arguments.layers, grid=False)
            baseline, encode_s, decode_s = baseline_bytes(tensors)
            bench("synthetic, steps in float16", tensors, coders, baseline, Path(folder))
            print(f"{'baseline':>12s} {'':12s} {baseline:12,d} {1:12.4f} {'':25s} {encode_s:12.2f} {decode_s:12.2f}")
            grid = synthetic(arguments.layers, grid=True)
            bench("synthetic, steps on a grid", grid, ["rans"], baseline, Path(folder))


if __name__ == "__main__":
    main()
