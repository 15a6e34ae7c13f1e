"""Runners of the forward passes: losses, logits and gradients, with and without adapters."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pgolf.interop.parity.adapters import adapter_place
from pgolf.interop.parity.build import build_model
from pgolf.interop.parity.case import Array, Case, Comparison, Outcome, Unsupported
from pgolf.interop.published import to_published
from pgolf.kernels.attend import sdpa
from pgolf.kernels.packing import Packing
from pgolf.model.context import Context
from pgolf.model.gpt import GPT
from pgolf.model.head import SoftCap
from pgolf.model.rope import Rotary
from pgolf.ttt.lora import BatchedLora, LoraSettings

FORWARD, GRADIENT = 1e-5, 1e-4
PLANS = {"noloop": "plain", "loop": "looped"}


def model_case(case: Case) -> Outcome:
    """The forward pass of a script: per-token losses, their mean, the first logits, and gradients where given."""
    model = _model(case)
    if "varlen_x" not in case.arrays:
        return _rows(model, case)
    if model.attention.rope.train_tokens is None:
        return _packed_and_plain(model, case, Comparison())
    return _either_rotary_table(model, case)


def adapted_forward(case: Case) -> Outcome:
    """The forward pass with an adapter a document: per-token losses and gradients of the adapters."""
    model, found = _model(case), Comparison()
    x, y = _tokens(case, "x"), _tokens(case, "y")
    for suffix, plan in PLANS.items():
        if f"ptl_{suffix}" not in case.arrays:
            continue
        model.set_plan(plan)
        adapters = _adapters(model, case.below(f"lora_{suffix}/"), case.meta.get("alpha"))
        losses, _ = _losses(model, x, y, Context(sdpa, adapters=adapters))
        found.near(f"losses, {suffix}", losses.detach(), case.arrays[f"ptl_{suffix}"], FORWARD)
        losses.mean(dim=1).sum().backward()
        for name, expected in case.below(f"lora_{suffix}_grad/").items():
            key, side = adapter_place(name)
            gradient = (adapters.down if side == "A" else adapters.up)[key].grad
            found.near(f"gradient of {name}, {suffix}", _or_zero(gradient, expected), expected, GRADIENT)
    return found.outcome()


def _model(case: Case) -> GPT:
    return build_model(str(case.meta["script"]), case.meta["config"], case.below("p/"))


def _either_rotary_table(model: GPT, case: Case) -> Outcome:
    """A script that stretches its rotary base by the row's length keeps the tables of the longest row that it has seen,
    so its shorter rows depend on what came before. Both histories are compared, and what is said names the nearer."""
    stretched = model.attention.rope
    longest = _tokens(case, "varlen_x").numel()
    kept = Rotary(dims=stretched.dims, base=stretched.base_for(longest))
    outcomes = []
    for rope, words in ((stretched, "made for each row"), (kept, "kept from the longest row")):
        for attention in model.attentions:
            attention.rope = rope
        found = Comparison(remarks=[f"rotary tables {words} (the case says: {case.meta.get('rope_cache', 'nothing')})"])
        outcomes.append(_packed_and_plain(model, case, found))
    return min(outcomes, key=lambda outcome: (not outcome.passed, outcome.max_error))


def _packed_and_plain(model: GPT, case: Case, found: Comparison) -> Outcome:
    x, y = _tokens(case, "varlen_x")[None], _tokens(case, "varlen_y")[None]
    rows_x, rows_y = _tokens(case, "plain_x"), _tokens(case, "plain_y")
    packings = {
        cut: Packing.from_cu_seqlens(torch.from_numpy(case.arrays[f"cu_seqlens_{cut}"])) for cut in ("split", "nosplit")
    }
    runs = [(f"varlen_{cut}", x, y, Context(sdpa, packing)) for cut, packing in packings.items()]
    for suffix, plan in PLANS.items():
        model.set_plan(plan)
        for name, inputs, targets, context in [*runs, ("plain", rows_x, rows_y, Context(sdpa))]:
            if f"{name}_{suffix}_ptl" in case.arrays:
                with torch.no_grad():
                    losses, logits = _losses(model, inputs, targets, context)
                    trained = _trained_loss(model, case, inputs, targets, context)
                _compare(case, found, f"{name}_{suffix}_", losses, logits, trained)
    if case.below("g/"):
        model.set_plan("looped")
        _gradients(model, _trained_loss(model, case, x, y, runs[0][3]), case, found)
    return found.outcome()


def _rows(model: GPT, case: Case) -> Outcome:
    x, y, found = _tokens(case, "x"), _tokens(case, "y"), Comparison()
    with torch.no_grad():
        losses, logits = _losses(model, x, y, Context(sdpa))
    trained = _trained_loss(model, case, x, y, Context(sdpa))
    _compare(case, found, "", losses, logits, trained.detach())
    if case.below("g/"):
        _gradients(model, trained, case, found)
    if "lora_ptl" in case.arrays:
        adapters = _adapters(model, case.below("lora/"), case.meta.get("alpha"))
        with torch.no_grad():
            losses, _ = _losses(model, x, y, Context(sdpa, adapters=adapters))
        found.near("losses with adapters", losses, case.arrays["lora_ptl"], FORWARD)
    return found.outcome()


def _tokens(case: Case, name: str) -> Tensor:
    return torch.from_numpy(case.arrays[name]).to(torch.int64)


def _losses(model: GPT, x: Tensor, y: Tensor, context: Context) -> tuple[Tensor, Tensor]:
    """Per-token losses [B, T] in nats, and logits [B, T, V]."""
    logits = model.logits(model(x, context), context)
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
    return losses.view_as(y), logits


def _trained_loss(model: GPT, case: Case, x: Tensor, y: Tensor, context: Context) -> Tensor:
    """The mean loss that a script trains on. Scripts with asymmetric caps train on the plain cap all the same
    (PR 1923 and after)."""
    logits = model.head(model(x, context), model.tok_emb.weight, context)
    logits = SoftCap(model.vocab_size, cap=float(case.meta["config"]["logit_softcap"]))(logits)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())


def _compare(case: Case, found: Comparison, prefix: str, losses: Tensor, logits: Tensor, trained: Tensor) -> None:
    expected = case.arrays[f"{prefix}ptl"]
    found.near(f"{prefix}losses", losses.reshape(expected.shape), expected, FORWARD)
    if f"{prefix}mean" in case.arrays:
        found.near(f"{prefix}mean", trained, case.arrays[f"{prefix}mean"], FORWARD)
    if f"{prefix}logits_first4" in case.arrays:
        found.near(f"{prefix}logits", logits.flatten(0, 1)[:4], case.arrays[f"{prefix}logits_first4"], FORWARD)


def _gradients(model: GPT, loss: Tensor, case: Case, found: Comparison) -> None:
    model.zero_grad()
    loss.backward()
    gradients = {to_published(name): parameter.grad for name, parameter in model.named_parameters()}
    for name, expected in case.below("g/").items():
        found.near(f"gradient of {name}", _or_zero(gradients.get(name), expected), expected, GRADIENT)


def _or_zero(gradient: Tensor | None, expected: Array) -> Tensor:
    """What autograd does not reach (a pass whose output is lost) has no gradient here and zeros in a case."""
    return torch.zeros(expected.shape) if gradient is None else gradient


def _adapters(model: GPT, arrays: Mapping[str, Array], alpha: float | None) -> BatchedLora:
    """Adapters with the given A and B; without an alpha their scale is 1."""
    rows, rank, _ = arrays["lm_head_lora.A"].shape
    given = {adapter_place(name): value for name, value in arrays.items()}
    settings = LoraSettings(
        rank=rank,
        alpha=float(rank if alpha is None else alpha),
        targets=sorted({key.partition(":")[2] for key, _ in given}),
        lr=0.0,
        beta1=0.0,
        beta2=0.0,
        epsilon=1e-10,
        weight_decay=0.0,
    )
    adapters = BatchedLora(model, rows, settings, 0, "parity")
    sides = {"A": adapters.down, "B": adapters.up}
    places = {(key, side) for side, held in sides.items() for key in held}
    if places != set(given):
        raise Unsupported(f"adapters at other places than the model's: {sorted(places ^ set(given))[:4]}")
    with torch.no_grad():
        for (key, side), value in given.items():
            sides[side][key].copy_(torch.from_numpy(value))
    return adapters
