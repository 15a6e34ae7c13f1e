"""From the configuration of a reference case to the model that it describes."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from pgolf.interop.parity.case import Array, Unsupported
from pgolf.interop.published import from_published
from pgolf.model.attention import CausalSelfAttention
from pgolf.model.exclude import gated_own_value, own_value
from pgolf.model.gates import AttentionOutGate, HeadGate
from pgolf.model.gpt import GPT
from pgolf.model.head import AsymmetricSoftCap, SoftCap, TiedHead, UntiedHead
from pgolf.model.lanes import ParallelResidual, TwoLane
from pgolf.model.mlp import LeakyReLUSquared
from pgolf.model.plan import Depth
from pgolf.model.precision import Precision
from pgolf.model.rope import Rotary
from pgolf.model.smear import SmearGate

# scripts whose smear gate stops at the start of a document
SMEAR_STOPS_AT_BOS = {"1797", "1851", "1855", "1868", "1908", "1923", "1925", "1945", "1953", "1967", "2007", "2014"}
SMEAR_STOPS_AT_BOS |= {"2018", "2041", "2060", "2101", "2109", "2119"}
# settings that change no forward pass of given weights
INERT = {
    "eval_seq_len",
    "tied_embed_init_std",
    "qk_gain_init",
    "gated_attn_init_std",
    "gated_attn_quant_gate",
    "sparse_attn_gate_init_std",
    "rope_train_seq_len",
    "fused_ce_enabled",
}
SAME = {
    "gate_attn_out": "attn_out_gate_enabled",
    "gate_attn_src": "attn_out_gate_src",
    "gate_width": "gate_window",
    "smear_gate": "smear_gate_enabled",
    "smear_gate_width": "smear_window",
    "smear_gate_window": "smear_window",
    "smear_gate_bos_fix": "smear_bos_fix",
    "smear_bos_mask": "smear_bos_fix",
    "parallel_residual_start": "parallel_blocks_from",
    "leaky_relu_slope": "mlp_leaky_slope",
    "embedding_dim": "embed_dim",
}
"""Keys that mean the same -> the one that is read."""


class Settings:
    """The configuration of a case, which notes what is read.

    `rest` names the keys that nothing read: parts that are not known here.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._values = {SAME.get(key, key): value for key, value in config.items()}
        self._names = {SAME.get(key, key): key for key in config}
        self._read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `key`, or `default`; Unsupported when there is neither."""
        self._read.add(key)
        if key in self._values:
            return self._values[key]
        if default is None:
            raise Unsupported(f"the case does not say {key}")
        return default

    def rest(self) -> list[str]:
        """The keys that were not read, under the names that the case gives them."""
        return [name for key, name in self._names.items() if key not in self._read and key not in INERT]


def build_model(script: str, config: Mapping[str, Any], parameters: Mapping[str, Array]) -> GPT:
    """The model of a case with its weights, in float32 throughout. Unsupported when the configuration asks for
    something else than the parts here.

    The scripts of 2026-03-17 leave out what they do not have: recurrence, XSA, partial rotation, leaky ReLU.
    """
    get = (settings := Settings(config)).get
    early = "xsa_last_n" not in settings
    dim, layers, heads = get("model_dim"), get("num_layers"), get("num_heads")
    if get("embed_dim", dim) != dim:
        raise Unsupported(f"embedding_dim={get('embed_dim')} with model_dim={dim}: factored embeddings are not here")
    for key in ("hash_embed_enabled", "value_residual", "gated_attention"):
        if get(key, False):
            raise Unsupported(f"{key} is not here")
    last = get("xsa_last_n", 0)
    excluded = gated_own_value if get("gated_xsa_enabled", False) else own_value
    cap = AsymmetricSoftCap if get("asym_logit_rescale", False) else SoftCap
    trained_tokens = int(get("train_seq_len", 2048))
    model = GPT(
        get("vocab_size"),
        0,
        dim=dim,
        qk_gain=1.0,
        embedding_std=0.005,
        layer_scale=bool(get("ln_scale", False)),
        skip_gates=bool(get("skip_gates_enabled", False)),
        depth=Depth(
            num_layers=layers,
            loop_start=get("loop_start", 0),
            loop_end=get("loop_end", 0),
            num_loops=get("num_loops", 0),
            skips=True,
        ),
        attention=partial(
            CausalSelfAttention,
            num_heads=heads,
            num_kv_heads=get("num_kv_heads"),
            rope=Rotary(
                dims=get("rope_dims", 0) or dim // heads,
                base=float(get("rope_base")),
                train_tokens=trained_tokens if get("rope_yarn", False) else None,
            ),
            exclude=partial(excluded, last=last) if last > 0 else None,
            gate=_gate(settings),
        ),
        mlp=partial(
            LeakyReLUSquared, multiple=float(get("mlp_mult")), slope=get("mlp_leaky_slope", 0.0 if early else 0.5)
        ),
        softcap=partial(cap, cap=float(get("logit_softcap"))),
        smear=_smear(settings, script),
        lanes=_lanes(settings, layers, "parallel_post_lambdas" in parameters),
        head=TiedHead if get("tie_embeddings") else UntiedHead,
        precision=Precision(parameters={}, autocast=None),
    )
    if unknown := settings.rest():
        raise Unsupported(f"configuration key(s) not known: {', '.join(unknown)}")
    _load(model, parameters)
    return model


def _gate(settings: Settings) -> Any:
    width = settings.get("gate_window", 12)
    source, scale = settings.get("attn_out_gate_src", "proj"), settings.get("sparse_attn_gate_scale", 1.0)
    choices = {
        "attn_out_gate_enabled": partial(AttentionOutGate, width=width, source=source),
        "gated_attn_enabled": partial(HeadGate, width=None, scale=1.0, init_std=0.0),
        "sparse_attn_gate_enabled": partial(HeadGate, width=width, scale=scale, init_std=0.0),
    }
    chosen = [gate for key, gate in choices.items() if settings.get(key, False)]
    if len(chosen) > 1:
        raise Unsupported("more than one gate on the attention output")
    return chosen[0] if chosen else None


def _smear(settings: Settings, script: str) -> Any:
    width = settings.get("smear_window", settings.get("gate_window", 12))
    stops = settings.get("smear_bos_fix", script in SMEAR_STOPS_AT_BOS)
    enabled = settings.get("smear_gate_enabled", False)
    return partial(SmearGate, width=width, bos_id=1 if stops else None) if enabled else None


def _lanes(settings: Settings, layers: int, lambdas: bool) -> Any:
    """Two lanes where there are lambdas for them. Layer 0 as a start of lanes, and layers beyond the last, mean none;
    the lambdas are then never read."""
    start, blocks_from = settings.get("parallel_start_layer", -1), settings.get("parallel_blocks_from", -1)
    final = settings.get("parallel_final_lane", "mean")
    if lambdas:
        return partial(TwoLane, start_layer=start, final_lane=final) if 0 < start < layers else None
    first = max(start, blocks_from)
    return partial(ParallelResidual, start_layer=first) if 0 <= first < layers else None


def _load(model: GPT, parameters: Mapping[str, Array]) -> None:
    full = {name: torch.from_numpy(value.copy()) for name, value in parameters.items() if value.size}
    given = from_published(full)  # a network without a first half has no rows of skip weights
    wanted = model.state_dict()
    if model.lanes is None:
        given = {name: value for name, value in given.items() if not name.startswith("lanes.parallel_")}
    if unknown := sorted(set(given) - set(wanted)):
        raise Unsupported(f"parameter(s) not known: {', '.join(unknown[:5])}")
    for name, value in given.items():  # a scalar may have one dimension or none
        if value.numel() == 1:
            given[name] = value.reshape(wanted[name].shape)
    model.load_state_dict(given)
