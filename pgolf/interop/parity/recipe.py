"""The published training recipes: what is when (schedules), and which optimiser has which parameter."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from pgolf.interop.parity.case import Case, Comparison, Outcome, Unsupported
from pgolf.interop.published import to_published
from pgolf.model.attention import CausalSelfAttention
from pgolf.model.gates import AttentionOutGate, HeadGate
from pgolf.model.gpt import GPT
from pgolf.model.lanes import TwoLane
from pgolf.model.mlp import LeakyReLUSquared
from pgolf.model.plan import Depth
from pgolf.model.rope import Rotary
from pgolf.model.smear import SmearGate
from pgolf.optim.adam import AdamW
from pgolf.optim.muon import Muon
from pgolf.optim.roles import RoleOptimizers
from pgolf.optim.schedule import Activation, Constant, MomentumRamp, Position, Schedule, StepWarmdown, Warmdown

GateFactory = Callable[[int, int], torch.nn.Module]
EXACT = 1e-12  # schedules are a few operations on doubles
BANKS = {"attn.c_q": "qo", "attn.proj": "qo", "attn.c_k": "kv", "attn.c_v": "kv", "mlp.fc": "mlp_up"}
BANKS |= {"mlp.proj": "mlp_down"}
GROUPS = {"tok": ("embedding",), "muon": ("matrix",), "scalar": ("scalar", "gate"), "head": ("head",)}
"""Published optimiser -> roles that it serves here."""
OPTIONS = {"backend_steps": "newton_schulz_steps", "row_normalize": "row_normalise"}
"""Published option -> ours, where the names differ."""
TORCHS_OWN = {"amsgrad", "maximize", "foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"}


def schedules(case: Case) -> Outcome:
    """Part of the budget, learning-rate multiplier, momentum and recurrence, row by row of every script's tables."""
    comparison = Comparison()
    for script, tables in case.meta.items():
        for number, table in enumerate(tables):
            config, where = table["config"], f"{script}[{number}]"
            for row in table["rows"]:
                position = _position(config, row)
                if "frac" in row:
                    comparison.close(f"{where} frac", position.fraction, row["frac"], EXACT)
                comparison.close(f"{where} lr_mul", warmdown_of(config).at(position), row["lr_mul"], EXACT)
                if row["muon_momentum"] is not None:  # None: the script leaves what it set before
                    momentum = momentum_of(config).at(position)
                    comparison.close(f"{where} muon_momentum", momentum, row["muon_momentum"], EXACT)
                if "looping" in row:
                    comparison.exact(f"{where} looping", _plan(config).at(position) == "looped", row["looping"])
    return comparison.outcome()


def optimizer_groups(case: Case) -> Outcome:
    """The optimiser of every parameter, and its options, for each script."""
    comparison = Comparison()
    for script, groups in case.meta["groups"].items():
        if unknown := groups.keys() - GROUPS.keys() - {"params_in_no_group"}:
            raise Unsupported(f"{script} has optimisers {', '.join(sorted(unknown))}")
        given = {name: parts for name, parts in groups.items() if name in GROUPS}
        names = {name for parts in given.values() for part in parts for name in part["params"]}
        ungrouped = set(groups.get("params_in_no_group", []))
        rows = _optimizers(names | ungrouped, given).table()
        for group, parts in given.items():
            if len(parts) != 1:
                raise Unsupported(f"{script} has {len(parts)} parameter groups in {group}")
            ours = [row for row in rows if row["group"] in GROUPS[group]]
            held = {_banked(to_published(row["name"])) for row in ours} - ungrouped
            comparison.exact(f"{script} {group}", sorted(held), sorted(parts[0]["params"]))
            for row in ours:
                for option, expected in _options(parts[0]).items():
                    comparison.close(f"{script} {row['name']} {option}", row[option], expected, 0.0)
        if ungrouped:
            comparison.remarks.append(
                f"{script} leaves {', '.join(sorted(ungrouped))} untrained; here they are trained"
            )
    return comparison.outcome()


def _position(config: Mapping[str, Any], row: Mapping[str, Any]) -> Position:
    seconds, budget = row["elapsed_ms"] / 1000.0, config["max_wallclock_seconds"]
    if budget > 0:
        fraction = seconds / (budget - config.get("gptq_reserve_seconds", 0.0))
    else:
        fraction = row["step"] / config["iterations"]
    return Position(row["step"], fraction, seconds)


def warmdown_of(config: Mapping[str, Any]) -> Schedule:
    """Multiplier on the learning rates."""
    if "warmdown_iters" in config:
        limit = config["max_wallclock_seconds"]
        return StepWarmdown(
            steps=config["warmdown_iters"], max_steps=config["iterations"], max_seconds=limit if limit > 0 else None
        )
    fraction, floor = config["warmdown_frac"], config["min_lr"]
    return Warmdown(fraction=fraction, floor=floor) if fraction > 0 else Constant(value=1.0)


def momentum_of(config: Mapping[str, Any]) -> Schedule:
    """Momentum of Muon."""
    start, end = config["muon_momentum_warmup_start"], config["muon_momentum"]
    steps = config["muon_momentum_warmup_steps"]
    return MomentumRamp(start=start, end=end, steps=steps) if steps > 0 else Constant(value=end)


def _plan(config: Mapping[str, Any]) -> Activation:
    return Activation(first="plain", starts={"looped": config["enable_looping_at"]} if config["num_loops"] else {})


def _optimizers(names: set[str], groups: Mapping[str, list[dict[str, Any]]]) -> RoleOptimizers:
    """Our optimisers with the published options, for a small model that has all the published parameters."""
    with torch.device("meta"):
        model = _model(names)
    options = {group: _options(parts[0]) for group, parts in groups.items()}
    adam = {group: partial(AdamW, **values) for group, values in options.items() if group != "muon"}
    muon = partial(Muon, **options["muon"], coefficients="stock")
    return RoleOptimizers(
        model,
        matrix=muon,
        embedding=adam["tok"],
        scalar=adam["scalar"],
        gate=adam["scalar"],
        head=adam.get("head"),
    )


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a published group by our names, without what torch adds and without the copy of lr."""
    skipped = TORCHS_OWN | {"params", "base_lr"}
    return {OPTIONS.get(name, name): value for name, value in group.items() if name not in skipped}


def _model(names: set[str]) -> GPT:
    """A small model with parts for all of `names` (published names)."""
    layers = 1 + max(int(match[1]) for name in names if (match := re.match(r"blocks\.(\d+)\.", name)))
    smear = partial(SmearGate, width=12, bos_id=None) if "smear_lambda" in names else None
    lanes = partial(TwoLane, start_layer=layers - 1, final_lane="mean") if "parallel_post_lambdas" in names else None
    gates: dict[str, GateFactory] = {
        "blocks.0.attn.attn_gate_w": partial(HeadGate, width=12, scale=1.0, init_std=0.0),
        "blocks.0.attn.attn_gate_proj.weight": partial(AttentionOutGate, width=12, source="proj"),
    }
    gate = next((made for name, made in gates.items() if name in names), None)
    return GPT(
        64,
        0,
        dim=32,
        qk_gain=1.0,
        embedding_std=0.005,
        layer_scale=True,
        skip_gates="skip_gates" in names,
        depth=Depth(num_layers=layers, loop_start=1, loop_end=1, num_loops=0, skips="skip_weights" in names),
        attention=partial(
            CausalSelfAttention, num_heads=4, num_kv_heads=2, rope=Rotary(dims=8, base=1e4), exclude=None, gate=gate
        ),
        mlp=partial(LeakyReLUSquared, multiple=2.0, slope=0.5),
        softcap=None,
        smear=smear,
        lanes=lanes,
    )


def _banked(name: str) -> str:
    """The bank that holds a block's matrix; other names stay."""
    match = re.fullmatch(r"blocks\.\d+\.(\w+\.\w+)\.weight", name)
    return f"{BANKS[match[1]]}_bank" if match and match[1] in BANKS else name
