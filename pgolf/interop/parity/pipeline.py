"""Runners of quantisation as a whole: what is calibrated, which tensor gets which scheme, and the model that comes
back."""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgolf.data.loaders import BatchShape, ShuffledSequenceLoader
from pgolf.interop.parity.build import build_model
from pgolf.interop.parity.case import Case, Comparison, Outcome, Unsupported
from pgolf.interop.parity.loaders import write_shards
from pgolf.interop.parity.symbols import ERROR, LARGE, TIED_SHARE, TIES, compare_factors, compare_stored
from pgolf.interop.published import to_published
from pgolf.kernels.attend import sdpa
from pgolf.model.context import Context
from pgolf.model.gpt import GPT
from pgolf.quant.encoded import Encoded, decode
from pgolf.quant.hessian import Calibration, collect_hessians
from pgolf.quant.schemes import Gptq, Half, Int8Rows, Lqer, Scheme, encode_exact
from pgolf.quant.schemes.lqer import leading_factors

HESSIAN, LOSS = 1e-5, 1e-5
GATE_SIZES = {"1736": (1024, 8192), "1769": (1024, 8192)}  # later scripts: 32 to 8192
KNOWN = {"matrix_bits", "embed_bits", "gptq_calibration_batches", "gated_attn_quant_gate", "train_batch_tokens"}
KNOWN |= {"grad_accum_steps", "lqer_enabled", "lqer_rank", "lqer_top_k", "lqer_factor_bits", "lqer_asym_enabled"}
KNOWN |= {"lqer_asym_group", *(f"{kind}_clip_sigmas" for kind in ("matrix", "embed", "mlp", "attn"))}
KNOWN |= {"gptq_reserve_seconds", "compressor"}  # neither changes a tensor
SETTINGS_BY_NAME = {"tok_emb": "embed", ".mlp.": "mlp", ".attn.": "attn"}


def round_trip(case: Case) -> Outcome:
    """A state dict through a script's routing, GPTQ, LQER and back."""
    settings, state = case.meta["h"], {name: torch.from_numpy(one) for name, one in case.below("p/").items()}
    hessians = {name: torch.from_numpy(one) for name, one in case.below("H/").items()}
    _refuse_unknown(settings)
    found, encoded = Comparison(), _quantised(state, hessians, settings, str(case.meta["script"]))
    corrected = _corrected(case, found, encoded, state, settings)
    for name, one in encoded.items():
        compare_stored(found, case, name, one, state[name])
        expected = case.meta["deq_err_norm_and_sha256"][name][0]
        error = (decode(corrected.get(name, one)).float() - state[name].float()).norm()
        found.near(f"error of {name}", error, expected, ERROR)
    return found.outcome()


def end_to_end(case: Case) -> Outcome:
    """Shuffled batches, Hessians, GPTQ, and the losses of the model that comes back."""
    found = Comparison()
    model = build_model(str(case.meta["script"]), case.meta["config"], case.below("p/"))
    quantisation(case, found, model, trained_here=False)
    return found.outcome()


def quantisation(case: Case, found: Comparison, model: GPT, *, trained_here: bool) -> None:
    """Calibrate and quantise the weights of `model`, which is left with what comes back. Compares the losses before and
    after, the Hessians, and every stored tensor, as far as the case holds them.

    trained_here: whether the weights, too, were computed here, so that more of them lie on another side of an edge.
    """
    script, settings, compares_losses = str(case.meta["script"]), case.meta["quant"], "x" in case.arrays
    _refuse_unknown(settings)
    model.set_plan("looped" if case.meta.get("looping_during_calibration", True) else "plain")
    names = {to_published(name): name for name in model.state_dict()}
    if compares_losses:
        _compare_losses(case, found, model, "ptl_fp", "losses before")
    calibrations = _calibrate(case, model)
    _compare_hessians(case, found, calibrations, 1e-4 if trained_here else HESSIAN)
    state = {name: model.state_dict()[ours].detach().clone() for name, ours in names.items()}
    hessians = {name: one.hessian for name, one in calibrations.items()}
    hessians |= {name: torch.from_numpy(one) for name, one in case.below("H/").items()}
    encoded = _quantised(state, hessians, settings, script)
    for name, one in encoded.items():
        own = trained_here or (name in calibrations and f"H/{name}" not in case.arrays)
        if trained_here and "symbols" not in one.parts:
            continue  # float16 of weights that were compared before
        compare_stored(found, case, name, one, state[name], len(state[name]) // TIED_SHARE if own else TIES)
        if "symbols" in one.parts and name in case.meta.get("err_norm", {}):
            found.near(f"error of {name}", (decode(one) - state[name]).norm(), case.meta["err_norm"][name], ERROR)
    published = {name: _published(case, name, one) for name, one in encoded.items()}
    published |= _corrected(case, found, published, state, settings)
    for name, one in published.items():
        model.state_dict()[names[name]].copy_(decode(one))
    if compares_losses:
        _compare_losses(case, found, model, "ptl_quant", "losses after")


def _compare_hessians(case: Case, found: Comparison, calibrations: Mapping[str, Calibration], tolerance: float) -> None:
    if "hessian_keys" in case.meta:
        found.exact("names of Hessians", sorted(calibrations), sorted(case.meta["hessian_keys"]))
    for size, take in (("fro", torch.linalg.matrix_norm), ("trace", torch.trace)):
        for name, expected in case.meta.get(f"hessian_{size}", {}).items():
            found.near(f"{size} of H {name}", take(calibrations[name].hessian), expected, tolerance)
    for name, matrix in case.below("H/").items():
        found.near(f"H {name}", calibrations[name].hessian, matrix, tolerance)


def _refuse_unknown(settings: Mapping[str, Any]) -> None:
    """Unsupported for settings that are not known, but for those that are switched off."""
    unknown = sorted(name for name in settings.keys() - KNOWN if settings[name])
    if unknown:
        raise Unsupported(f"setting(s) of quantisation not known: {', '.join(unknown)}")


def _published(case: Case, name: str, encoded: Encoded) -> Encoded:
    """The tensor with the symbols of the case, so that the losses after do not depend on ties."""
    symbols = case.arrays.get(f"res/{name}.q")
    if symbols is None:
        return encoded
    return replace(encoded, parts=encoded.parts | {"symbols": symbols})


def _calibrate(case: Case, model: GPT) -> dict[str, Calibration]:
    """Hessians by published name, over the case's own shards."""
    settings, length = {**case.meta.get("train", {}), **case.meta["quant"]}, case.meta["config"]["train_seq_len"]
    micro = settings["train_batch_tokens"] // settings["grad_accum_steps"]
    shape = BatchShape(micro // length * length, length)  # whole rows
    context = Context(sdpa)
    sites = {to_published(name): site for name, site in model.calibration_sites().items()}
    with tempfile.TemporaryDirectory() as folder:
        loader = ShuffledSequenceLoader(write_shards(case, Path(folder)), 1, 0, shape)
        batches = [lambda: model.logits(model(loader.next().inputs, context), context)]
        return collect_hessians(sites, batches * settings["gptq_calibration_batches"])


def _compare_losses(case: Case, found: Comparison, model: GPT, key: str, what: str) -> None:
    x, y = (torch.from_numpy(case.arrays[name]) for name in "xy")
    found.near(what, _losses(model, x, y), case.arrays[key], LOSS)


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
        compare_factors(found, name, parts, {q: kept[key] for q, key in named.items()}, "{}")
        arrays = {key: value.contiguous().numpy() for key, value in parts.items()}
        corrected[name] = Encoded("rows", "lqer", encoded[name].shape, encoded[name].parts | arrays)
    return corrected
