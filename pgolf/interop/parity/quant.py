"""Runners of quantisation: symbols and scales exact, but for a few values that lie on a rounding edge."""

import lzma
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import brotli
import torch
from torch import Tensor

from pgolf.data.loaders import BatchShape, ShuffledSequenceLoader
from pgolf.interop.grouped import pack_streams, unpack_streams
from pgolf.interop.parity.build import build_model
from pgolf.interop.parity.case import Array, Case, Comparison, Outcome
from pgolf.interop.parity.loaders import write_shards
from pgolf.interop.published import to_published
from pgolf.kernels.attend import sdpa
from pgolf.model.context import Context
from pgolf.model.gpt import GPT
from pgolf.quant.coders import shuffle_bytes
from pgolf.quant.encoded import Encoded, decode
from pgolf.quant.hessian import Calibration, collect_hessians
from pgolf.quant.ordering import similarity_order
from pgolf.quant.schemes import Gptq, Half, Int8Baseline, Int8Rows, Lqer, Scheme, encode_exact
from pgolf.quant.schemes.lqer import leading_factors, pack_asymmetric, pack_symmetric

TIES = 3
"""Rows of a tensor that may differ: the last bits of BLAS and LAPACK decide on which side of an edge a value falls, and
error feedback carries that through the rest of its row."""
TIED_SHARE = 10
"""One row in so many may differ where the Hessian, too, was computed here: those of a few tokens are near singular."""
ERROR = 1e-3
"""Relative tolerance of the norms of errors, which ties move."""
SCALE = 1e-3  # one unit in the last place of float16; the SVD behind a factor is not the same to the last bit
HESSIAN, LOSS = 1e-5, 1e-5
LARGE = 65_536
"""The scripts quantise tensors with more elements."""
GATE_SIZES = {"1736": (1024, 8192), "1769": (1024, 8192)}  # later scripts: 32 to 8192
SETTINGS_BY_NAME = {"tok_emb": "embed", ".mlp.": "mlp", ".attn.": "attn"}


def core(case: Case) -> Outcome:
    """GPTQ of W<i> with H<i>, and the norms of the error."""
    found = Comparison()
    cases = case.meta["cases"]
    for index, one in cases.items() if isinstance(cases, dict) else enumerate(cases):
        weight, hessian = (torch.from_numpy(case.arrays[f"{letter}{index}"]) for letter in "WH")
        bits = (one["clip_range"] + 1).bit_length()
        scheme = Gptq(bits=bits, clip_sigmas=one["clip_sigmas"], block_size=one["block_size"])
        encoded = scheme.quantise(weight, Calibration(hessian))
        _compare_rows(found, f"case {index}", encoded, case.arrays[f"q{index}"], case.arrays[f"scale{index}"])
        error = (weight - decode(encoded)).double()
        norms = [float(error.norm()), float(((error @ hessian.double()) * error).sum())]
        found.near(f"errors of case {index}", norms, case.arrays[f"err{index}"], ERROR)
    return found.outcome()


def gate_rows(case: Case) -> Outcome:
    """int8 rows of W<i>."""
    found = Comparison()
    for index in _indices(case, "W"):
        encoded = Int8Rows().quantise(torch.from_numpy(case.arrays[f"W{index}"]))
        _compare_rows(found, f"case {index}", encoded, case.arrays[f"q{index}"], case.arrays[f"s{index}"], ties=0)
    return found.outcome()


def baseline(case: Case) -> Outcome:
    """The export of the baseline script: which tensors are quantised, how, and what comes back."""
    found, state = Comparison(), case.below("p/")
    kept, dtypes = case.below("passthrough/"), case.meta["obj"].get("passthrough_orig_dtypes", {})
    for name, value in state.items():
        if f"quantized/{name}" in case.arrays:
            encoded = Int8Baseline().quantise(torch.from_numpy(value))
            symbols, scales = case.arrays[f"quantized/{name}"], case.arrays[f"scales/{name}"]
            _compare_rows(found, name, encoded, symbols, scales, ties=0)
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
        _compare_factors(found, f"asymmetric {index}", asymmetric, case.arrays, "asym_{}" + str(index), ties=0)
        _compare_factors(found, f"symmetric {index}", symmetric, case.arrays, "sym_{}" + str(index), ties=0)
    return found.outcome()


def round_trip(case: Case) -> Outcome:
    """A state dict through a script's routing, GPTQ, LQER and back."""
    settings, state = case.meta["h"], {name: torch.from_numpy(one) for name, one in case.below("p/").items()}
    hessians = {name: torch.from_numpy(one) for name, one in case.below("H/").items()}
    found, encoded = Comparison(), _quantised(state, hessians, settings, str(case.meta["script"]))
    corrected = _corrected(case, found, encoded, state, settings)
    for name, one in encoded.items():
        _compare_stored(found, case, name, one, state[name])
        expected = case.meta["deq_err_norm_and_sha256"][name][0]
        error = (decode(corrected.get(name, one)).float() - state[name].float()).norm()
        found.near(f"error of {name}", error, expected, ERROR)
    return found.outcome()


def end_to_end(case: Case) -> Outcome:
    """Shuffled batches, Hessians, GPTQ, and the losses of the model that comes back."""
    found, settings = Comparison(), case.meta["quant"]
    model = build_model(str(case.meta["script"]), case.meta["config"], case.below("p/"))
    model.set_plan("looped" if case.meta["looping_during_calibration"] else "plain")
    names = {to_published(name): name for name in model.state_dict()}
    x, y = (torch.from_numpy(case.arrays[key]) for key in "xy")
    found.near("losses before", _losses(model, x, y), case.arrays["ptl_fp"], LOSS)
    calibrations = _calibrate(case, model)
    found.exact("names of Hessians", sorted(calibrations), sorted(case.meta["hessian_keys"]))
    for name, one in calibrations.items():
        sizes = [float(one.hessian.norm()), float(one.hessian.trace())]
        found.near(f"size of H {name}", sizes, [case.meta[f"hessian_{key}"][name] for key in ("fro", "trace")], HESSIAN)
    for name, expected in case.below("H/").items():
        found.near(f"H {name}", calibrations[name].hessian, expected, HESSIAN)
    state = {name: model.state_dict()[ours].detach().clone() for name, ours in names.items()}
    hessians = {name: one.hessian for name, one in calibrations.items()}
    hessians |= {name: torch.from_numpy(one) for name, one in case.below("H/").items()}
    for name, encoded in _quantised(state, hessians, settings, str(case.meta["script"])).items():
        own = name in calibrations and f"H/{name}" not in case.arrays
        _compare_stored(found, case, name, encoded, state[name], len(state[name]) // TIED_SHARE if own else TIES)
        if "symbols" in encoded.parts:
            error = (decode(encoded) - state[name]).norm()
            found.near(f"error of {name}", error, case.meta["err_norm"][name], ERROR)
        model.state_dict()[names[name]].copy_(decode(_published(case, name, encoded)))
    found.near("losses after", _losses(model, x, y), case.arrays["ptl_quant"], LOSS)
    return found.outcome()


def _published(case: Case, name: str, encoded: Encoded) -> Encoded:
    """The tensor with the symbols of the case, so that the losses after do not depend on ties."""
    symbols = case.arrays.get(f"res/{name}.q")
    if symbols is None:
        return encoded
    return replace(encoded, parts=encoded.parts | {"symbols": symbols})


def _calibrate(case: Case, model: GPT) -> dict[str, Calibration]:
    """Hessians by published name, over the case's own shards."""
    settings, length = case.meta["quant"], case.meta["config"]["train_seq_len"]
    tokens = settings["train_batch_tokens"] // settings["grad_accum_steps"]
    context = Context(sdpa)
    sites = {to_published(name): site for name, site in model.calibration_sites().items()}
    with tempfile.TemporaryDirectory() as folder:
        loader = ShuffledSequenceLoader(write_shards(case, Path(folder)), 1, 0, BatchShape(tokens, length))
        batches = [lambda: model.logits(model(loader.next().inputs, context), context)]
        return collect_hessians(sites, batches * settings["gptq_calibration_batches"])


@torch.no_grad()
def _losses(model: GPT, x: Tensor, y: Tensor) -> Tensor:
    context = Context(sdpa)
    logits = model.logits(model(x, context), context).flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, y.flatten(), reduction="none").view_as(y)


def _quantised(
    state: Mapping[str, Tensor], hessians: Mapping[str, Tensor], settings: Mapping[str, Any], script: str
) -> dict[str, Encoded]:
    """The tensors by the scripts' routing: int8 gates, float16 for what is small, GPTQ for the rest."""
    encoded = {}
    for name, value in state.items():
        if not value.is_floating_point():
            encoded[name] = encode_exact(value)
            continue
        hessian = hessians.get(name)
        calibration = None if hessian is None else Calibration(hessian)
        encoded[name] = _scheme(name, value, settings, script).quantise(value, calibration)
    return encoded


def _scheme(name: str, value: Tensor, settings: Mapping[str, Any], script: str) -> Scheme:
    least, most = GATE_SIZES.get(script, (32, 8192))
    is_gate = value.ndim == 2 and name.endswith(".attn_gate_w") and least <= value.numel() <= most
    if is_gate and settings.get("gated_attn_quant_gate"):
        return Int8Rows()
    if value.numel() <= LARGE:
        return Half()
    kind = next((kind for part, kind in SETTINGS_BY_NAME.items() if part in name), "matrix")
    bits = settings["embed_bits" if kind == "embed" else "matrix_bits"]
    return Gptq(bits=bits, clip_sigmas=settings[f"{kind}_clip_sigmas"])


def _corrected(
    case: Case,
    found: Comparison,
    encoded: Mapping[str, Encoded],
    state: Mapping[str, Tensor],
    settings: Mapping[str, Any],
) -> dict[str, Encoded]:
    """The tensors that LQER corrects. The signs of the factors are those of the case: an SVD leaves them open."""
    if not settings.get("lqer_enabled"):
        return {}
    group = settings["lqer_asym_group"] if settings["lqer_asym_enabled"] else 0
    tool = Lqer(
        rank=settings["lqer_rank"], tensors=settings["lqer_top_k"], bits=settings["lqer_factor_bits"], group_size=group
    )
    calibrated = {name: one for name, one in encoded.items() if one.scheme.startswith("gptq")}
    errors = {name: float((decode(one) - state[name].float()).norm()) for name, one in calibrated.items()}
    chosen, kept = tool.choose(errors), case.below("res/")
    expected = {name.rpartition(".")[0] for name in kept if name.rpartition(".")[2] in ("lqA", "lqA_a")}
    found.exact("tensors that LQER corrects", sorted(chosen), sorted(expected))
    corrected = {}
    for name in set(chosen) & expected:
        factor_a, factor_b = leading_factors(state[name].float() - decode(encoded[name]), tool.rank)
        suffix = "_a" if f"{name}.lqA_a" in kept else ""
        published = torch.from_numpy(kept[f"{name}.lqA{suffix}"]).float()
        signs = torch.where((factor_a * published).sum(dim=0) < 0, -1.0, 1.0)
        parts, _ = tool.pack(factor_a * signs, factor_b * signs[:, None])
        named = {q: f"{name}.lq{lq}{suffix}" for q, lq in (("qA", "A"), ("sA", "As"), ("qB", "B"), ("sB", "Bs"))}
        _compare_factors(found, name, parts, {q: kept[key] for q, key in named.items()}, "{}")
        arrays = {key: value.contiguous().numpy() for key, value in parts.items()}
        corrected[name] = Encoded("rows", "lqer", encoded[name].shape, encoded[name].parts | arrays)
    return corrected


def _compare_stored(
    found: Comparison, case: Case, name: str, encoded: Encoded, weight: Tensor, ties: int = TIES
) -> None:
    """One tensor against the case: symbols and scales, or, where they are omitted, float16."""
    for symbols, scales in (("q", "scale"), ("gq", "gs")):
        if f"res/{name}.{symbols}" in case.arrays:
            kept = case.arrays[f"res/{name}.{symbols}"], case.arrays[f"res/{name}.{scales}"]
            _compare_rows(found, name, encoded, *kept, ties=max(ties, TIES))
            return
    exact = case.arrays.get(f"res/{name}", weight.half().numpy() if weight.is_floating_point() else weight.numpy())
    found.exact(name, encoded.parts["values"], exact)
    expected = case.meta["quant_meta"][name]
    found.exact(f"scheme of {name}", expected.startswith("passthrough"), True)


def _compare_rows(
    found: Comparison, what: str, encoded: Encoded, symbols: Array, scales: Array, ties: int = TIES
) -> None:
    """Scales to the bit, symbols but for ties."""
    if "symbols" not in encoded.parts or encoded.parts["symbols"].shape != symbols.shape:
        found.exact(f"scheme of {what}", encoded.scheme, "symbols and scales")
        return
    found.exact(f"scales of {what}", encoded.parts["scales"], scales)
    if not ties:
        found.exact(f"symbols of {what}", encoded.parts["symbols"], symbols)
        return
    differing = int((encoded.parts["symbols"] != symbols).any(axis=1).sum())
    found.at_most(f"number of rows of {what} that may differ", differing, ties)
    if differing:
        found.remarks.append(f"{differing} of {len(symbols)} rows of {what} differ by a tie")


def _compare_factors(
    found: Comparison,
    what: str,
    parts: Mapping[str, Tensor],
    kept: Mapping[str, Array],
    form: str,
    ties: int = TIES,
) -> None:
    """Packed factors; `form` makes their names in the case of qA, sA, qB and sB."""
    for part, name in (("factor_a", "qA"), ("scales_a", "sA"), ("factor_b", "qB"), ("scales_b", "sB")):
        got, expected = parts[part].numpy(), kept[form.format(name)]
        if ties and part.startswith("factor"):
            found.at_most(f"number of symbols in {part} of {what} that may differ", int((got != expected).sum()), ties)
        elif ties:
            found.near(f"{part} of {what}", got, expected, SCALE)
        else:
            found.exact(f"{part} of {what}", got, expected)


def _indices(case: Case, letter: str) -> list[int]:
    return [int(key[len(letter) :]) for key in case.arrays if key[len(letter) :].isdigit() and key.startswith(letter)]


def _large_floats(state: Mapping[str, Array]) -> list[str]:
    return sorted(name for name, value in state.items() if value.dtype.kind == "f" and value.size > LARGE)
