"""Runners of single steps of quantisation."""

import lzma
from collections.abc import Mapping

import brotli
import torch

from pgolf.interop.grouped import pack_streams, unpack_streams
from pgolf.interop.parity.case import Array, Case, Comparison, Outcome
from pgolf.interop.parity.symbols import ERROR, LARGE, compare_factors, compare_rows
from pgolf.quant.coders import shuffle_bytes
from pgolf.quant.encoded import decode
from pgolf.quant.hessian import Calibration
from pgolf.quant.ordering import similarity_order
from pgolf.quant.schemes import Gptq, Half, Int8Baseline, Int8Rows
from pgolf.quant.schemes.lqer import pack_asymmetric, pack_symmetric


def core(case: Case) -> Outcome:
    """GPTQ of W<i> with H<i>, and the norms of the error."""
    found = Comparison()
    cases = case.meta["cases"]
    for index, one in cases.items() if isinstance(cases, dict) else enumerate(cases):
        weight, hessian = (torch.from_numpy(case.arrays[f"{letter}{index}"]) for letter in "WH")
        bits = (one["clip_range"] + 1).bit_length()
        scheme = Gptq(bits=bits, clip_sigmas=one["clip_sigmas"], block_size=one["block_size"])
        encoded = scheme.quantise(weight, Calibration(hessian))
        compare_rows(found, f"case {index}", encoded, case.arrays[f"q{index}"], case.arrays[f"scale{index}"])
        error = (weight - decode(encoded)).double()
        norms = [float(error.norm()), float(((error @ hessian.double()) * error).sum())]
        found.near(f"errors of case {index}", norms, case.arrays[f"err{index}"], ERROR)
    return found.outcome()


def gate_rows(case: Case) -> Outcome:
    """int8 rows of W<i>."""
    found = Comparison()
    for index in _indices(case, "W"):
        encoded = Int8Rows().quantise(torch.from_numpy(case.arrays[f"W{index}"]))
        compare_rows(found, f"case {index}", encoded, case.arrays[f"q{index}"], case.arrays[f"s{index}"], ties=0)
    return found.outcome()


def baseline(case: Case) -> Outcome:
    """The export of the baseline script: which tensors are quantised, how, and what comes back."""
    found, state = Comparison(), case.below("p/")
    kept, dtypes = case.below("passthrough/"), case.meta["obj"].get("passthrough_orig_dtypes", {})
    for name, value in state.items():
        if f"quantized/{name}" in case.arrays:
            encoded = Int8Baseline().quantise(torch.from_numpy(value))
            symbols, scales = case.arrays[f"quantized/{name}"], case.arrays[f"scales/{name}"]
            compare_rows(found, name, encoded, symbols, scales, ties=0)
            expected = case.meta["obj"]["deq_err"][name][1]
            found.near(f"error of {name}", (decode(encoded) - torch.from_numpy(value)).norm(), expected, 1e-5)
        elif name in dtypes:
            found.exact(name, decode(Half().quantise(torch.from_numpy(value))), kept[name])
        else:
            found.exact(name, value, kept[name])
    found.exact("tensors that are quantised", sorted(case.below("quantized/")), _large_floats(state))
    return found.outcome()


def byte_shuffle(case: Case) -> Outcome:
    """Shuffled bytes behind their magic, and the size of what two coders make of them."""
    found = Comparison()
    for index, one in enumerate(case.meta["cases"]):
        raw = case.arrays[f"raw{index}"].tobytes()
        framed = b"BSHF\x02" + shuffle_bytes(raw, 2) if len(raw) >= 2 else raw
        found.exact(f"shuffled bytes {index}", list(framed), case.arrays[f"shuffled{index}"].tolist())
        found.exact(
            f"decoded bytes {index}", list(brotli.decompress(case.arrays[f"brotli{index}"].tobytes())), list(framed)
        )
        found.exact(f"brotli size {index}", len(brotli.compress(framed, quality=11)), one["brotli_len"])
        found.exact(f"lzma size {index}", len(lzma.compress(framed, preset=6)), one["lzma_len"])
    return found.outcome()


def similarity(case: Case) -> Outcome:
    """Orders of the rows of M<i>, and the container of grouped streams."""
    found = Comparison()
    for index in _indices(case, "M"):
        found.exact(f"order {index}", similarity_order(case.arrays[f"M{index}"]), case.arrays[f"order{index}"])
    streams = [bytes(stream) for stream in case.meta["packed_streams"]]
    packed = pack_streams(streams)
    found.exact("packed streams", list(packed), case.arrays["packed_example"].tolist())
    found.exact("unpacked streams", unpack_streams(packed) == streams, True)
    return found.outcome()


def lqer_factors(case: Case) -> Outcome:
    """Both packings of given factors A<i> and B<i>."""
    found = Comparison()
    for index, one in enumerate(case.meta["cases"]):
        factor_a, factor_b = (torch.from_numpy(case.arrays[f"{letter}{index}"]) for letter in "AB")
        asymmetric = pack_asymmetric(factor_a, factor_b, one["group"])
        symmetric = pack_symmetric(factor_a, factor_b, one["bits"])
        compare_factors(found, f"asymmetric {index}", asymmetric, case.arrays, "asym_{}" + str(index), ties=0)
        compare_factors(found, f"symmetric {index}", symmetric, case.arrays, "sym_{}" + str(index), ties=0)
    return found.outcome()


def _indices(case: Case, letter: str) -> list[int]:
    return [int(key[len(letter) :]) for key in case.arrays if key[len(letter) :].isdigit() and key.startswith(letter)]


def _large_floats(state: Mapping[str, Array]) -> list[str]:
    return sorted(name for name, value in state.items() if value.dtype.kind == "f" and value.size > LARGE)
