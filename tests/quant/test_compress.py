"""Choosing schemes by role, the report's arithmetic, estimates, refusals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pgolf.errors import UserError
from pgolf.quant import container
from pgolf.quant.compress import Compressor, Rule, by_class
from pgolf.quant.gptq import gptq_quantise
from pgolf.quant.hessian import Calibration
from pgolf.quant.schemes import AwqLite, Float32, Gptq, Half, Int8Rows, Lqer, Scheme

SHAPES = {
    "tok_emb.weight": (64, 32),
    "blocks.0.attn.c_q.weight": (32, 32),
    "blocks.0.mlp.fc.weight": (96, 32),
    "blocks.0.attn.gate_w": (4, 32),
    "blocks.0.attn.tiny_gate": (4, 2),
    "blocks.0.attn_scale": (32,),
    "blocks.1.small.weight": (4, 4),
}
ROLES = {
    "tok_emb.weight": "embedding",
    "blocks.0.attn.c_q.weight": "matrix",
    "blocks.0.mlp.fc.weight": "matrix",
    "blocks.0.attn.gate_w": "gate",
    "blocks.0.attn.tiny_gate": "gate",
    "blocks.0.attn_scale": "scalar",
    "blocks.1.small.weight": "matrix",
}


def compressor(**changes: object) -> Compressor:
    arguments: dict[str, object] = {
        "matrix": Gptq(bits=6, clip_sigmas=12.85),
        "embedding": Gptq(bits=7, clip_sigmas=15.0),
        "head": None,
        "scalar": Half(),
        "gate": Int8Rows(min_elements=32),
        "coder": "brotli",
        "calibration_batches": 2,
        "min_quantised_elements": 512,
    }
    return Compressor(**{**arguments, **changes})  # type: ignore[arg-type]


def state_of(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**state, "tok_emb.weight": state["tok_emb.weight"].bfloat16()}


def hessians_for(names: list[str]) -> dict[str, Calibration]:
    generator = torch.Generator().manual_seed(1)
    result = {}
    for name in names:
        inputs = torch.randn(100, SHAPES[name][1], generator=generator)
        result[name] = Calibration(inputs.t() @ inputs, 100)
    return result


def compress(path: Path, tool: Compressor, state: dict[str, Tensor] | None = None) -> dict[str, Any]:
    hessians = hessians_for(tool.hessian_names(SHAPES, ROLES))
    return tool.compress(state or state_of(SHAPES), ROLES, hessians, {"step": 3}, path)


def test_roles_choose_schemes(tmp_path: Path) -> None:
    tool = compressor()
    report = compress(tmp_path / "a", tool)
    schemes = {row["tensor"]: row["scheme"] for row in report["tensors"]}
    assert schemes == {
        "tok_emb.weight": "gptq int7",
        "blocks.0.attn.c_q.weight": "gptq int6",
        "blocks.0.mlp.fc.weight": "gptq int6",
        "blocks.0.attn.gate_w": "int8 rows",
        "blocks.0.attn.tiny_gate": "float16",
        "blocks.0.attn_scale": "float16",
        "blocks.1.small.weight": "float16",
    }
    assert tool.hessian_names(SHAPES, ROLES) == list(SHAPES)[:3]


def test_the_artifact_holds_what_the_schemes_made(tmp_path: Path) -> None:
    state = state_of(SHAPES)
    compress(tmp_path / "a", compressor(), state)
    loaded, metadata = container.load(tmp_path / "a")
    assert metadata == {"step": 3}
    assert list(loaded) == list(state)
    for name, tensor in state.items():
        assert loaded[name].dtype == tensor.dtype and loaded[name].shape == tensor.shape
    name = "blocks.0.mlp.fc.weight"
    hessian = hessians_for(list(SHAPES)[:3])[name].hessian
    symbols, scales = gptq_quantise(state[name], hessian, clip_sigmas=12.85, bits=6)
    assert torch.equal(loaded[name], symbols.float() * scales.float()[:, None])
    assert torch.equal(loaded["blocks.0.attn_scale"], state["blocks.0.attn_scale"].half().float())


def test_report_adds_up(tmp_path: Path) -> None:
    report = compress(tmp_path / "a", compressor())
    assert report["weight_bytes"] == (tmp_path / "a").stat().st_size
    assert report["header_bytes"] + sum(row["coded_bytes"] for row in report["classes"]) == report["weight_bytes"]
    assert report["parameters"] == sum(t.numel() for t in state_of(SHAPES).values())
    assert {row["role"] for row in report["classes"]} == set(ROLES.values())
    errors = {row["tensor"]: row["relative_error"] for row in report["tensors"]}
    assert 0 < errors["blocks.0.attn_scale"] < 1e-3
    assert 0.05 < errors["blocks.0.mlp.fc.weight"] < 0.4


def test_threshold_is_the_least_quantised_size(tmp_path: Path) -> None:
    at = compressor(min_quantised_elements=32 * 32)
    above = compressor(min_quantised_elements=32 * 32 + 1)
    assert "blocks.0.attn.c_q.weight" in at.hessian_names(SHAPES, ROLES)
    assert "blocks.0.attn.c_q.weight" not in above.hessian_names(SHAPES, ROLES)


def test_threshold_leaves_plain_schemes_alone(tmp_path: Path) -> None:
    tool = compressor(matrix=Float32(), min_quantised_elements=10**6)
    state = state_of(SHAPES)
    tool.compress(state, ROLES, {}, {}, tmp_path / "a")
    loaded, _ = container.load(tmp_path / "a")
    assert torch.equal(loaded["blocks.0.mlp.fc.weight"], state["blocks.0.mlp.fc.weight"])


def test_rules_override_the_role(tmp_path: Path) -> None:
    rules = {"mlp": Rule(role="matrix", pattern="*.mlp.*", scheme=Gptq(bits=4, clip_sigmas=8.0))}
    report = compress(tmp_path / "a", compressor(rules=rules))
    schemes = {row["tensor"]: row["scheme"] for row in report["tensors"]}
    assert schemes["blocks.0.mlp.fc.weight"] == "gptq int4"
    assert schemes["blocks.0.attn.c_q.weight"] == "gptq int6"


def test_the_first_rule_that_matches_wins(tmp_path: Path) -> None:
    rules = {
        "mlp": Rule(pattern="*.mlp.*", scheme=Gptq(bits=4, clip_sigmas=8.0)),
        "blocks": Rule(role="matrix", pattern="blocks.*", scheme=Int8Rows()),
        "all gains": Rule(pattern="*_scale", scheme=Float32()),
    }
    report = compress(tmp_path / "a", compressor(rules=rules))
    schemes = {row["tensor"]: row["scheme"] for row in report["tensors"]}
    assert schemes["blocks.0.mlp.fc.weight"] == "gptq int4"
    assert schemes["blocks.0.attn.c_q.weight"] == "int8 rows"
    assert schemes["blocks.0.attn_scale"] == "float32"
    assert schemes["tok_emb.weight"] == "gptq int7"


def test_a_rule_behind_a_wider_one_is_refused() -> None:
    rules = {
        "blocks": Rule(role="matrix", pattern="blocks.*", scheme=Half()),
        "mlp": Rule(role="matrix", pattern="*.mlp.*", scheme=Half()),
    }
    with pytest.raises(UserError, match=r"quant\.rules\.mlp never applies"):
        compressor(rules=rules).estimate(SHAPES, ROLES)


def test_awq_lite_protects_the_most_active_groups(tmp_path: Path) -> None:
    tool = compressor(protection=AwqLite(groups=2, group_size=16, bits=8))
    state, hessians = state_of(SHAPES), hessians_for(list(SHAPES)[:3])
    loud = hessians["blocks.0.mlp.fc.weight"].hessian.clone()
    loud[16:] *= 100
    loud[:, 16:] *= 100
    hessians["blocks.0.mlp.fc.weight"] = Calibration(loud, 100)
    report = tool.compress(state, ROLES, hessians, {}, tmp_path / "a")
    schemes = {row["tensor"]: row["scheme"] for row in report["tensors"]}
    assert schemes["blocks.0.mlp.fc.weight"] == "gptq int6 + int8 groups"
    tensors = {tensor.name: tensor.encoded for tensor in container.read(tmp_path / "a")[0]}
    assert 16 in tensors["blocks.0.mlp.fc.weight"].parts["group_starts"]
    loaded, _ = container.load(tmp_path / "a")
    error = (loaded["blocks.0.mlp.fc.weight"] - state["blocks.0.mlp.fc.weight"]).abs()
    assert error[:, 16:].mean() < 0.5 * error[:, :16].mean()


def test_lqer_corrects_the_tensors_with_the_largest_error(tmp_path: Path) -> None:
    plain = compress(tmp_path / "a", compressor())
    corrected = compress(tmp_path / "b", compressor(correction=Lqer(rank=2, tensors=1, group_size=0)))
    before, after = ({row["tensor"]: row for row in report["tensors"]} for report in (plain, corrected))
    changed = [name for name in before if before[name]["scheme"] != after[name]["scheme"]]
    assert changed == ["blocks.0.mlp.fc.weight"] and after[changed[0]]["scheme"] == "gptq int6 + lqer"
    assert after[changed[0]]["relative_error"] < before[changed[0]]["relative_error"]


def test_a_rule_without_a_tensor_is_refused() -> None:
    rules = {"mpl": Rule(role="matrix", pattern="*.mpl.*", scheme=Half())}
    with pytest.raises(UserError, match=r"quant\.rules\.mpl"):
        compressor(rules=rules).estimate(SHAPES, ROLES)


def test_integer_buffers_are_exact(tmp_path: Path) -> None:
    state = {**state_of(SHAPES), "count": torch.tensor([5, 7])}
    hessians = hessians_for(compressor().hessian_names(SHAPES, ROLES))
    compressor().compress(state, ROLES, hessians, {}, tmp_path / "a")
    loaded, _ = container.load(tmp_path / "a")
    assert torch.equal(loaded["count"], state["count"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, r, h: r.pop("blocks.0.attn_scale"), r"blocks\.0\.attn_scale has no role"),
        (lambda s, r, h: r.update({"tok_emb.weight": "head"}), r"tok_emb\.weight.*quant\.head"),
        (lambda s, r, h: r.update({"tok_emb.weight": "router"}), r"tok_emb\.weight.*router"),
        (lambda s, r, h: h.pop("tok_emb.weight"), r"tok_emb\.weight.*Hessian"),
        (lambda s, r, h: h.update({"tok_emb.weight": Calibration(torch.eye(3))}), r"tok_emb\.weight: the Hess"),
        (
            lambda s, r, h: s["blocks.0.attn_scale"].fill_(1e6),
            r"blocks\.0\.attn_scale: a value exceeds",
        ),
    ],
)
def test_refusals_name_the_tensor(tmp_path: Path, change: Callable, message: str) -> None:
    tool, state, roles = compressor(), state_of(SHAPES), dict(ROLES)
    hessians = hessians_for(tool.hessian_names(SHAPES, ROLES))
    change(state, roles, hessians)
    with pytest.raises(UserError, match=message):
        tool.compress(state, roles, hessians, {}, tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "change",
    [{"coder": "rar"}, {"calibration_batches": 0}, {"limit_bytes": 0}]
    + [{"min_quantised_elements": 0}, {"rules": {"a": Rule(role="x", pattern="*", scheme=Half())}}],
)
def test_impossible_settings_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(change)))):
        compressor(**change)


@pytest.mark.parametrize("coder", ["brotli", "zstd", "lzma", "zlib", "none"])
@pytest.mark.parametrize("matrix", [Gptq(bits=6, clip_sigmas=12.85), Int8Rows(), Float32(), Half()])
def test_estimate_is_near_for_gaussian_weights(tmp_path: Path, coder: str, matrix: Scheme) -> None:
    shapes = {f"blocks.{index}.weight": (200, 256) for index in range(2)}
    roles = dict.fromkeys(shapes, "matrix")
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    tool = compressor(matrix=matrix, coder=coder)
    hessians = {name: Calibration(torch.eye(256)) for name in shapes} if matrix.needs_hessian else {}
    report = tool.compress(state, roles, hessians, {}, tmp_path / "a")
    rows = tool.estimate(shapes, roles)
    assert all(row["estimate"] for row in rows)
    estimated = sum(row["estimated_bytes"] for row in rows)
    assert estimated == pytest.approx(report["weight_bytes"], rel=0.12)


def test_estimate_of_the_published_shapes_is_near_the_published_size() -> None:
    """PR 1736: 35.99M parameters, logged artifacts of 15.94 to 15.95 MB without code."""
    shapes: dict[str, tuple[int, ...]] = {"tok_emb.weight": (8192, 512)}
    for block in range(11):
        prefix = f"blocks.{block}"
        shapes |= {
            f"{prefix}.attn.c_q.weight": (512, 512),
            f"{prefix}.attn.c_k.weight": (256, 512),
            f"{prefix}.attn.c_v.weight": (256, 512),
            f"{prefix}.attn.proj.weight": (512, 512),
            f"{prefix}.mlp.fc.weight": (2048, 512),
            f"{prefix}.mlp.proj.weight": (512, 2048),
        }
    roles = {name: "embedding" if name == "tok_emb.weight" else "matrix" for name in shapes}
    rules = {
        "attention": Rule(role="matrix", pattern="*.attn.*", scheme=Gptq(bits=6, clip_sigmas=13.0)),
        "mlp": Rule(role="matrix", pattern="*.mlp.*", scheme=Gptq(bits=6, clip_sigmas=12.0)),
    }
    rows = compressor(rules=rules).estimate(shapes, roles)
    total = sum(row["estimated_bytes"] for row in rows)
    assert total == pytest.approx(15_945_000, rel=0.015)
    classes = by_class(rows)
    assert sum(row["estimated_bytes"] for row in classes) == total
    assert [(row["role"], row["tensors"]) for row in classes] == [
        ("embedding", 1),
        ("matrix", 66),
        ("container", 1),
    ]


def test_a_coder_whose_program_is_missing_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"program lrzip, which is not installed.*quant\.coder=rans"):
        Compressor(
            matrix=Half(), embedding=Half(), head=None, scalar=Half(), gate=None, coder="lrzip", calibration_batches=1
        )
