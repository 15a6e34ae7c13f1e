"""The modes of rotation that can be chosen: what is rotated before quantisation, and how the artifact says so.

A study of all of them on one trained model (SpinQuant modes `baseline`, which is no rotation, `internal_only` and
`online`) found them within 0.0001 bits per byte of each other at six bits and clips of 12 to 13 deviations.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from pgolf.errors import UserError
from pgolf.model.gpt import GPT
from pgolf.model.roles import stream
from pgolf.quant import rotation
from pgolf.quant.hessian import Calibration
from pgolf.quant.rotation import SITES, Site

TOLERANCE = 1e-4
"""Relative change of the logits that a rotation inside the model may cause."""
CHECKED_TOKENS = (2, 32)
READERS: dict[str, Site] = {"c_q": "attn_in", "c_k": "attn_in", "c_v": "attn_in", "fc": "mlp_in", "fc_gate": "mlp_in"}
"""The site whose values a linear map of this name reads; one called `proj` reads what its attention or MLP made."""


class Rotation(Protocol):
    """A mode of rotation."""

    @property
    def description(self) -> dict[str, Any]:
        """What the artifact's metadata say of it."""
        ...

    def enter(self, model: GPT) -> None:
        """Rotate inside `model` before it is calibrated, without changing what it computes. UserError where that
        cannot be."""
        ...

    def sites(self, roles: Mapping[str, str]) -> dict[str, Site]:
        """The site of every tensor that is rotated between calibration and quantisation."""
        ...

    def rotated(
        self, state: Mapping[str, Tensor], roles: Mapping[str, str], calibrations: Mapping[str, Calibration]
    ) -> tuple[dict[str, Tensor], dict[str, Calibration]]:
        """Weights and calibrations as they are quantised."""
        ...


class InternalOnly:
    """Values are rotated head by head, and the output projection takes that back: V <- R V, O <- O R^T, for every layer
    and key/value group. The result is a model like any other, so loading has nothing to do.

    Head gates and XSA commute with it, the rotation of a whole residual stream or through the squared activation of an
    MLP does not commute with anything here.

    seed: group g of layer i is rotated by the signed Hadamard matrix of seed + 1000 i + g.
    """

    def __init__(self, *, seed: int) -> None:
        self.seed = seed

    @property
    def description(self) -> dict[str, Any]:
        """Kind and seed."""
        return {"kind": "internal_only", "seed": self.seed}

    @torch.no_grad()
    def enter(self, model: GPT) -> None:
        """Rotate values and output projections; UserError when the model then computes something else, or has none."""
        if not model.attentions:
            raise UserError(
                "quant.rotation=internal_only turns values of attention, which no block of this model has "
                "(model/state_space). Choose quant/rotation=none."
            )
        witness = copy.deepcopy(model).cpu()  # where everything is computed in float32
        tokens = torch.randint(model.vocab_size, CHECKED_TOKENS, generator=stream(self.seed, "rotation"))
        before = witness.logits(witness(tokens))
        for layer, block in enumerate(model.blocks):
            if block.attn is not None:
                self._turn(block.attn, layer)
        witness.load_state_dict(model.state_dict())
        change = float((witness.logits(witness(tokens)) - before).norm() / before.norm().clamp_min(1e-30))
        if not change <= TOLERANCE:
            raise UserError(
                f"quant.rotation=internal_only changes what this model computes (by {change:.1e} of its logits): a "
                "part between values and output projection does not commute with it. Choose quant/rotation=online."
            )

    def _turn(self, attention: torch.nn.Module, layer: int) -> None:
        groups, size = int(attention.num_kv_heads), int(attention.head_dim)  # type: ignore[arg-type]
        whole = dict(attention.named_parameters())
        if not {"c_v.weight", "proj.weight"} <= whole.keys():
            raise UserError(
                f"quant.rotation=internal_only turns whole matrices, and c_v or proj of blocks.{layer}.attn is made of "
                "others (model.basis, model.legendre). Choose quant/rotation=online."
            )
        values, output = whole["c_v.weight"], whole["proj.weight"]
        turns = torch.stack([rotation.signed_hadamard(size, self.seed + 1000 * layer + g) for g in range(groups)])
        turns = turns.to(values.device)
        values.copy_((turns @ values.double().unflatten(0, (groups, size))).flatten(0, 1))
        heads = output.double().unflatten(1, (groups, -1, size))  # [dim, group, head in the group, size]
        output.copy_(torch.einsum("oghi,gji->oghj", heads, turns).flatten(1))

    def sites(self, roles: Mapping[str, str]) -> dict[str, Site]:
        """None: everything has happened inside the model."""
        return {}

    def rotated(
        self, state: Mapping[str, Tensor], roles: Mapping[str, str], calibrations: Mapping[str, Calibration]
    ) -> tuple[dict[str, Tensor], dict[str, Calibration]]:
        """Both as they are."""
        return dict(state), dict(calibrations)


class Online:
    """The inputs of the matrices of every block are rotated, by one rotation for each site: W <- W R, H <- R^T H R
    (PR 1695). Hessians are gathered before, as published.

    seed: of the rotations (published: 20260416 in PR 1695, 42 in a port of it).
    sites: some of attn_in, attn_proj_in, mlp_in, mlp_proj_in.
    """

    def __init__(self, *, seed: int, sites: list[str]) -> None:
        unknown = sorted(set(sites) - set(SITES))
        if unknown or not sites or len(set(sites)) != len(sites):
            raise ValueError(f"quant.rotation.sites={sites}: choose some of {', '.join(SITES)}, each once")
        self.seed, self.chosen = seed, tuple(sites)

    @property
    def description(self) -> dict[str, Any]:
        """Kind and seed."""
        return {"kind": "online", "seed": self.seed}

    def enter(self, model: GPT) -> None:
        """The model stays as it is."""

    def sites(self, roles: Mapping[str, str]) -> dict[str, Site]:
        """The chosen sites of the weight matrices. UserError for a site that nothing reads."""
        found = {name: site for name, role in roles.items() if role == "matrix" and (site := _read_site(name))}
        if unread := [site for site in self.chosen if site not in found.values()]:
            raise UserError(f"quant.rotation.sites: no weight matrix of this model reads {unread[0]}.")
        return {name: site for name, site in found.items() if site in self.chosen}

    def rotated(
        self, state: Mapping[str, Tensor], roles: Mapping[str, str], calibrations: Mapping[str, Calibration]
    ) -> tuple[dict[str, Tensor], dict[str, Calibration]]:
        """W R and R^T H R at the sites. Matrices that share a Hessian still do."""
        turns, shared = rotation.Online(self.seed), dict[tuple[int, str], Tensor]()
        weights, known = dict(state), dict(calibrations)
        for name, site in self.sites(roles).items():
            weights[name] = turns.turn(state[name], site)
            if name in known:
                hessian = known[name].hessian
                key = (id(hessian), site)
                if key not in shared:
                    shared[key] = turns.turn_hessian(hessian, site)
                known[name] = replace(known[name], hessian=shared[key])
        return weights, known


def _read_site(name: str) -> Site | None:
    """The site that the weight `name` reads, None when it is at none."""
    *_, parent, module, weight = ("", "", *name.split("."))
    if weight != "weight":
        return None
    if module == "proj":
        return "attn_proj_in" if parent == "attn" else "mlp_proj_in"
    return READERS.get(module)
