"""Checkpoints of the record scripts: bit for bit in both directions, refused in sentences, never run."""

import json
import os
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.errors import UserError
from pgolf.interop import checkpoint
from pgolf.interop.parity.build import build_model
from pgolf.interop.published import from_published, to_published
from pgolf.model.gates import HeadGate
from pgolf.model.head import AsymmetricSoftCap, UntiedHead
from pgolf.model.lanes import TwoLane
from pgolf.model.precision import Precision
from pgolf.model.smear import SmearGate
from tests.support import GOLDEN, tiny_model

FULL = {
    "gate": partial(HeadGate, width=12, scale=1.0, init_std=0.0),
    "smear": partial(SmearGate, width=12, bos_id=1),
    "lanes": partial(TwoLane, start_layer=3, final_lane="mean"),
    "softcap": partial(AsymmetricSoftCap, cap=30.0),
    "precision": Precision(parameters={"embedding": "bfloat16"}, autocast=None),
}


def same(first: dict, second: dict) -> None:
    """Equal names, dtypes, shapes and bits."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        other = second[name]
        assert (value.dtype, value.shape) == (other.dtype, other.shape), name
        assert torch.equal(value.flatten().view(torch.uint8), other.flatten().view(torch.uint8)), name


@pytest.mark.parametrize("banked", [False, True])
@pytest.mark.parametrize("parts", [{}, {"head": UntiedHead}, FULL], ids=["plain", "untied", "full"])
def test_a_model_goes_out_and_comes_back_to_the_bit(tmp_path: Path, parts: dict[str, Any], banked: bool) -> None:
    model, other = tiny_model(scramble=0.1, **parts), tiny_model(seed=2, **parts)
    path = tmp_path / "final_model.pt"
    checkpoint.write(path, model.state_dict(), banked)
    weights = checkpoint.fit(checkpoint.read(path), other, path)
    same(weights, dict(model.state_dict()))
    other.load_state_dict(weights)
    tokens = torch.arange(40).view(2, 20)
    assert torch.equal(model(tokens), other(tokens))


def test_banks_hold_the_layers_in_the_published_order(tmp_path: Path) -> None:
    state = dict(tiny_model(scramble=0.1).state_dict())
    path = tmp_path / "final_model.pt"
    checkpoint.write(path, state, banked=True)
    stored = torch.load(path, weights_only=True)
    assert stored["qo_bank"].shape == (8, 32, 32) and stored["kv_bank"].shape == (8, 16, 32)
    assert stored["mlp_up_bank"].shape == (4, 64, 32) and stored["mlp_down_bank"].shape == (4, 32, 64)
    for layer in range(4):
        block = f"blocks.{layer}"
        assert torch.equal(stored["qo_bank"][layer], state[f"{block}.attn.c_q.weight"])
        assert torch.equal(stored["qo_bank"][4 + layer], state[f"{block}.attn.proj.weight"])
        assert torch.equal(stored["kv_bank"][layer], state[f"{block}.attn.c_k.weight"])
        assert torch.equal(stored["kv_bank"][4 + layer], state[f"{block}.attn.c_v.weight"])
        assert torch.equal(stored["mlp_up_bank"][layer], state[f"{block}.mlp.fc.weight"])
        assert torch.equal(stored["mlp_down_bank"][layer], state[f"{block}.mlp.proj.weight"])
    assert not any("c_q" in name for name in stored)


@settings(max_examples=25, deadline=None)
@given(
    layers=st.integers(1, 4),
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)),
    dtypes=st.lists(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), min_size=6, max_size=6),
    seed=st.integers(0, 2**16),
)
def test_published_checkpoints_come_back_to_the_bit(tmp_path_factory, layers, sizes, dtypes, seed) -> None:
    dim, kv, hidden = sizes
    generator = torch.Generator().manual_seed(seed)

    def draw(dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    published = {
        "tok_emb.weight": draw(dtypes[0], 7, dim),
        "qo_bank": draw(dtypes[1], 2 * layers, dim, dim),
        "kv_bank": draw(dtypes[2], 2 * layers, kv, dim),
        "mlp_up_bank": draw(dtypes[3], layers, hidden, dim),
        "mlp_down_bank": draw(dtypes[4], layers, dim, hidden),
        "smear_lambda": draw(dtypes[5], 1),
        "lm_head.weight": draw(dtypes[0], 7, dim),
        "blocks.0.attn.attn_gate_w": draw(dtypes[5], 2, 1),
    }
    path = tmp_path_factory.mktemp("checkpoint") / "a.pt"
    torch.save(published, path)
    weights = checkpoint.read(path)
    assert "smear.smear_lambda" in weights and "head.weight" in weights and "blocks.0.attn.gate.attn_gate_w" in weights
    again = path.with_name("b.pt")
    checkpoint.write(again, weights, banked=True)
    same(torch.load(again, weights_only=True), published)


def test_names_go_there_and_back() -> None:
    names = list(tiny_model(head=UntiedHead, **FULL).state_dict())
    assert list(from_published({to_published(name): torch.zeros(1) for name in names})) == names


CASES = ("model_1736_default", "model_1855_full", "model_1626_default", "model_naive_tied_grad")


@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no reference data in {GOLDEN}")
@pytest.mark.parametrize("name", CASES)
def test_weights_of_the_published_scripts_give_the_same_model(name: str, tmp_path: Path) -> None:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        meta = json.loads(str(file["meta_json"]))
        arrays = {key.removeprefix("p/"): file[key] for key in file.files if key.startswith("p/")}
    model = build_model(meta["script"], meta["config"], arrays)
    path, again = tmp_path / "final_model.pt", tmp_path / "again.pt"
    state = {key: torch.from_numpy(value) for key, value in arrays.items()}
    torch.save(state, path)
    weights = checkpoint.fit(checkpoint.read(path), model, path)
    same(weights, dict(model.state_dict()))
    for banked in (False, True):  # out in either layout, and in again
        checkpoint.write(again, weights, banked)
        same(checkpoint.fit(checkpoint.read(again), model, again), weights)
    checkpoint.write(again, checkpoint.read(path), banked=False)
    same(torch.load(again, weights_only=True), state)


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    marker, path = tmp_path / "was-here", tmp_path / "hostile.pt"
    torch.save({"tok_emb.weight": torch.zeros(3), "extra": Hostile(marker)}, path)
    with pytest.raises(UserError, match="could run the code of whoever wrote it"):
        checkpoint.read(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # it would have


def refusal(path: Path, content: Any) -> str:
    torch.save(content, path)
    with pytest.raises(UserError) as error:
        checkpoint.read(path)
    return str(error.value)


def test_what_is_no_state_dict_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "wrong.pt"
    assert "holds a list and no state dict" in refusal(path, [torch.zeros(2)])
    assert "holds a dict and no state dict" in refusal(path, {})
    assert "holds 'model', a dict" in refusal(path, {"model": {"a": torch.zeros(2)}})
    assert "holds 3, a Tensor" in refusal(path, {3: torch.zeros(2)})
    assert "tensor a is not a dense tensor" in refusal(path, {"a": torch.zeros(2, dtype=torch.int64)})
    assert "tensor a is not a dense tensor" in refusal(path, {"a": torch.eye(3).to_sparse()})
    assert "more elements than the file has numbers" in refusal(path, {"a": torch.zeros(1).expand(10**9)})
    assert "infinite or not a number" in refusal(path, {"a": torch.tensor([1.0, float("nan")])})
    assert "qo_bank has shape [3, 2, 2]; it should be [2 x layers" in refusal(path, {"qo_bank": torch.zeros(3, 2, 2)})
    assert "kv_bank has shape [4, 2]" in refusal(path, {"kv_bank": torch.zeros(4, 2)})


def test_missing_and_damaged_files_are_sentences(tmp_path: Path) -> None:
    path = tmp_path / "final_model.pt"
    with pytest.raises(UserError, match="cannot read the checkpoint .*No such file"):
        checkpoint.read(path)
    torch.save({"a": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    for damaged in (b"", b"hello", whole[:200], whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            checkpoint.read(path)


def test_a_compressed_file_is_not_opened(tmp_path: Path) -> None:
    plain, path = tmp_path / "plain.pt", tmp_path / "bomb.pt"
    torch.save({"a": torch.zeros(100_000)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.namelist():
            target.writestr(entry, source.read(entry))
    with pytest.raises(UserError, match="in it is compressed"):
        checkpoint.read(path)


def test_every_misfit_is_told_at_once() -> None:
    model = tiny_model(**FULL)
    weights = dict(model.state_dict())
    del weights["blocks.1.attn_scale"]
    weights["bigram.weight"] = torch.zeros(2)
    weights["blocks.0.mlp_scale"] = torch.zeros(31)
    weights["tok_emb.weight"] = torch.full((64, 32), 0.1)  # no bf16 number
    with pytest.raises(UserError) as error:
        checkpoint.fit(weights, model, Path("some.pt"))
    text = str(error.value)
    assert "missing: blocks.1.attn_scale;" in text and "unknown: bigram.weight;" in text
    assert "blocks.0.mlp_scale ([31], the model has [32])" in text
    assert "too precise: tok_emb.weight (float32, the model has bfloat16)" in text and "model/precision=fp32" in text
    many = {name: value for name, value in weights.items() if not name.startswith("blocks")}
    with pytest.raises(UserError, match=r"missing: (blocks[\w.]+, ){4}blocks[\w.]+ and \d+ more"):
        checkpoint.fit(many, model, Path("some.pt"))


def test_dtypes_are_changed_where_no_bit_is_lost() -> None:
    model = tiny_model(**FULL)
    weights = {name: value.to(torch.bfloat16).float() for name, value in model.state_dict().items()}
    weights["softcap.softcap_pos"] = torch.tensor(29.0)  # without a dimension, as some scripts have it
    fitting = checkpoint.fit(weights, model, Path("some.pt"))
    assert fitting["tok_emb.weight"].dtype == torch.bfloat16
    assert torch.equal(fitting["tok_emb.weight"].float(), weights["tok_emb.weight"])
    assert fitting["softcap.softcap_pos"].shape == (1,)


def test_matrices_of_different_shapes_have_no_bank(tmp_path: Path) -> None:
    weights = dict(tiny_model().state_dict())
    del weights["blocks.2.mlp.fc.weight"]
    with pytest.raises(UserError, match="mlp_up_bank cannot be stacked"):
        checkpoint.write(tmp_path / "a.pt", weights, banked=True)
    assert not list(tmp_path.iterdir())
