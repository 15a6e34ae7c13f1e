"""Rotations: made from the seed, without effect on what a model computes, and never left in place."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pgolf.errors import UserError
from pgolf.model.basis import LowRank
from pgolf.model.exclude import gated_own_value
from pgolf.model.gates import AttentionOutGate, HeadGate
from pgolf.model.gpt import GPT
from pgolf.model.lanes import TwoLane
from pgolf.model.mlp import SwiGLU
from pgolf.model.roles import parameter_roles
from pgolf.quant import container, packer
from pgolf.quant.compress import Compressor
from pgolf.quant.encoded import decode
from pgolf.quant.hessian import Calibration, collect_hessians
from pgolf.quant.rotation import MAX_SIZE, SITES, signed_hadamard, tag_seed
from pgolf.quant.rotations import InternalOnly, Online, Rotation
from pgolf.quant.schemes import Float32, Gptq, Half, Int8Rows, Lqer
from tests.support import tiny_model

TOKENS = torch.randint(64, (3, 24), generator=torch.Generator().manual_seed(5))


def test_seeds_of_tags_are_the_published_ones() -> None:
    assert (tag_seed(42, "attn_in"), tag_seed(42, "mlp_in")) == (1785729227, 4025977877)


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 150), seed=st.integers(0, 2**31))
def test_every_size_is_orthogonal_and_the_same_again(size: int, seed: int) -> None:
    made = signed_hadamard(size, seed)
    torch.testing.assert_close(made @ made.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-11)
    again = signed_hadamard.__wrapped__(size, seed)
    assert torch.equal(made, again)


def test_a_power_of_two_has_entries_of_one_magnitude() -> None:
    assert torch.equal(signed_hadamard(64, 7).abs(), torch.full((64, 64), 0.125, dtype=torch.float64))
    with pytest.raises(ValueError, match="1 to 8192"):
        signed_hadamard(MAX_SIZE + 1, 0)


PARTS: list[dict[str, Any]] = [
    {},
    {"gate": partial(HeadGate, width=None, scale=1.0, init_std=0.1), "lanes": None},
    {"gate": partial(AttentionOutGate, width=12, source="q")},
    {"mlp": partial(SwiGLU, multiple=2.0)},
    {"lanes": partial(TwoLane, start_layer=2, final_lane="mean")},
    {"dim": 48},
]


@pytest.mark.parametrize("parts", PARTS)
def test_rotating_inside_changes_no_logit_but_the_weights(parts: dict[str, Any]) -> None:
    model = tiny_model(scramble=0.2, **parts)
    before, weights = model.logits(model(TOKENS)), {k: v.clone() for k, v in model.state_dict().items()}
    InternalOnly(seed=3).enter(model)
    assert _relative(model.logits(model(TOKENS)), before) < 1e-5
    moved = {name for name, value in model.state_dict().items() if not torch.allclose(value, weights[name], atol=1e-3)}
    assert moved == {f"blocks.{i}.attn.{one}.weight" for i in range(4) for one in ("c_v", "proj")}


def test_gated_exclusion_commutes_with_it() -> None:
    model = tiny_model(scramble=0.2)
    for layer, block in enumerate(model.blocks):
        block.attn.exclude = gated_own_value(4, layer, 4, last=None)
        torch.nn.init.constant_(block.attn.exclude.xsa_alpha, 0.7)
    before = model.logits(model(TOKENS))
    InternalOnly(seed=3).enter(model)
    assert _relative(model.logits(model(TOKENS)), before) < 1e-5


class Biased(torch.nn.Module):
    """Something between values and output that does not commute with a rotation."""

    def forward(self, n: Tensor, q: Tensor) -> Tensor:
        return torch.linspace(0.0, 1.0, 8).expand(1, 1, 4, 8)


def test_a_part_that_does_not_commute_is_refused() -> None:
    model = tiny_model(scramble=0.2)
    model.blocks[1].attn.gate = Biased()
    with pytest.raises(UserError, match="does not commute"):
        InternalOnly(seed=3).enter(model)


def test_attention_without_whole_matrices_is_refused() -> None:
    model = tiny_model(scramble=0.3, basis=LowRank(rank=4, patterns=["blocks.2.attn.c_v"]))
    with pytest.raises(UserError, match=r"c_v or proj of blocks.2.attn .*model.basis"):
        InternalOnly(seed=42).enter(model)


def compressor(chosen: Rotation | None, **changes: Any) -> Compressor:
    settings: dict[str, Any] = {"matrix": Gptq(bits=6, clip_sigmas=12.0), "embedding": Int8Rows(), "head": None}
    settings |= {"scalar": Float32(), "gate": Half(), "coder": "zlib", "calibration_batches": 1}
    return Compressor(**{**settings, "min_quantised_elements": 1, "rotation": chosen, **changes})


def packed(model: GPT, chosen: Rotation | None, path: Path, **changes: Any) -> dict[str, Any]:
    """Calibrate on TOKENS, quantise, write."""
    if chosen is not None:
        chosen.enter(model)
    tool, roles, state = compressor(chosen, **changes), parameter_roles(model), model.state_dict()
    names = tool.hessian_names({name: tuple(one.shape) for name, one in state.items()}, roles)
    sites = {name: site for name, site in model.calibration_sites().items() if name in names}
    known = collect_hessians(sites, [lambda: model(TOKENS)]) if names else {}
    return tool.compress(state, roles, known, {"seed": 1}, path)


@pytest.mark.parametrize("sites", [list(SITES), ["attn_in"], ["attn_proj_in", "mlp_proj_in"], ["mlp_in"]])
def test_without_rounding_what_is_loaded_is_what_was_stored(sites: list[str], tmp_path: Path) -> None:
    model, path = tiny_model(scramble=0.2), tmp_path / "artifact.pgolf"
    packed(model, Online(seed=42, sites=sites), path, matrix=Float32(), embedding=Float32())
    loaded, metadata = container.load(path)
    assert metadata["rotation"] == {"kind": "online", "seed": 42}
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded[name], value, rtol=1e-5, atol=1e-6)
    stored = {one.name: one.encoded for one in container.read(path)[0]}
    marks = {name: encoded.decoder.partition("@")[2] for name, encoded in stored.items()}
    assert {mark for mark in marks.values() if mark} == set(sites)
    assert marks["tok_emb.weight"] == ""


@pytest.mark.parametrize("chosen", [InternalOnly(seed=42), Online(seed=42, sites=list(SITES))])
def test_rotated_weights_are_quantised_as_well_and_take_no_more_bytes(chosen: Rotation, tmp_path: Path) -> None:
    logits, sizes = [], []
    for name, one in (("plain", None), ("rotated", chosen)):
        model, path = tiny_model(scramble=0.2), tmp_path / name
        exact = model.logits(model(TOKENS))
        report = packed(model, one, path)
        model.load_state_dict(container.load(path)[0])
        logits.append(_relative(model.logits(model(TOKENS)), exact))
        sizes.append(report["weight_bytes"])
    assert 0.0 < logits[1] < 1.5 * logits[0]
    assert sizes[1] - sizes[0] < 0.01 * sizes[0]


def test_hessians_are_turned_with_the_inputs_and_stay_shared() -> None:
    model = tiny_model(scramble=0.2)
    sites = {name: one for name, one in model.calibration_sites().items() if name.startswith("blocks")}
    known = collect_hessians(sites, [lambda: model(TOKENS)])
    turned = Online(seed=1, sites=["attn_in"]).rotated(model.state_dict(), parameter_roles(model), known)
    names = [f"blocks.1.attn.{one}.weight" for one in ("c_q", "c_k", "c_v")]
    first, second, third = (turned[1][name].hessian for name in names)
    assert first is second is third and first is not known[names[0]].hessian
    weight, hessian = model.state_dict()[names[0]], known[names[0]].hessian
    before, after = ((one @ h @ one.T).trace() for one, h in ((weight, hessian), (turned[0][names[0]], first)))
    torch.testing.assert_close(before, after, rtol=1e-4, atol=0)
    assert turned[1]["blocks.1.mlp.fc.weight"] is known["blocks.1.mlp.fc.weight"]


def test_a_correction_is_of_the_rotated_weight(tmp_path: Path) -> None:
    model, path = tiny_model(scramble=0.2), tmp_path / "artifact.pgolf"
    errors = []
    for lqer in (None, Lqer(rank=4, tensors=3)):
        packed(model, Online(seed=42, sites=list(SITES)), path, matrix=Gptq(bits=3, clip_sigmas=4.0), correction=lqer)
        loaded = container.load(path)[0]
        errors.append(sum(float((loaded[name] - one).norm() ** 2) for name, one in model.state_dict().items()))
    assert errors[1] < errors[0]


def test_rotated_weights_cannot_be_read_without_being_turned_back(tmp_path: Path) -> None:
    model, path = tiny_model(scramble=0.2), tmp_path / "artifact.pgolf"
    packed(model, Online(seed=42, sites=["mlp_in"]), path)
    tensors, metadata = container.read(path)
    one = next(tensor for tensor in tensors if tensor.name == "blocks.0.mlp.fc.weight")
    with pytest.raises(ValueError, match="unknown decoder 'rows@mlp_in'"):
        decode(one.encoded)
    for changed, match in (
        ({"kind": "sideways", "seed": 42}, "the rotation .*sideways.* is unknown; this version knows internal_only"),
        ({"kind": "online", "seed": "42"}, "is unknown"),
        (["online"], "is unknown"),
        (None, "rotated at 'mlp_in', and the metadata name no rotation"),
        ({"kind": "internal_only", "seed": 42}, "the metadata name no rotation"),
    ):
        packer.write(path, tensors, {**metadata, "rotation": changed}, coder="zlib")
        with pytest.raises(UserError, match=match):
            container.load(path)
    elsewhere = dataclasses.replace(one, encoded=dataclasses.replace(one.encoded, decoder="rows@residual"))
    packer.write(path, [elsewhere], metadata, coder="zlib")
    with pytest.raises(UserError, match="none of the sites"):
        container.load(path)


def test_another_seed_in_the_metadata_gives_other_weights(tmp_path: Path) -> None:
    model, path = tiny_model(scramble=0.2), tmp_path / "artifact.pgolf"
    packed(model, Online(seed=42, sites=["mlp_in"]), path)
    tensors, metadata = container.read(path)
    packer.write(path, tensors, {**metadata, "rotation": {"kind": "online", "seed": 43}}, coder="zlib")
    loaded, weight = container.load(path)[0], model.state_dict()["blocks.0.mlp.fc.weight"]
    assert _relative(loaded["blocks.0.mlp.fc.weight"], weight) > 0.5


@pytest.mark.parametrize("sites", [[], ["attn_in", "attn_in"], ["residual"]])
def test_sites_that_do_not_exist_are_refused(sites: list[str]) -> None:
    with pytest.raises(ValueError, match="choose some of attn_in"):
        Online(seed=1, sites=sites)


def test_a_site_that_nothing_reads_is_refused() -> None:
    with pytest.raises(UserError, match="no weight matrix of this model reads mlp_in"):
        Online(seed=1, sites=["attn_in", "mlp_in"]).sites({"blocks.0.attn.c_q.weight": "matrix"})


def test_a_rotated_weight_without_its_hessian_is_an_error(tmp_path: Path) -> None:
    model = tiny_model(scramble=0.2)
    tool = compressor(Online(seed=42, sites=["attn_in"]))
    known: dict[str, Calibration] = {}
    with pytest.raises(UserError, match="needs a Hessian"):
        tool.compress(model.state_dict(), parameter_roles(model), known, {}, tmp_path / "artifact.pgolf")


def _relative(values: Tensor, reference: Tensor) -> float:
    return float(((values - reference).norm() / reference.norm()).detach())
