"""Zeros that save bytes: the smallest weights, or symbols of one until the artifact fits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.console import Silent
from pgolf.model.roles import parameter_roles
from pgolf.quant import container
from pgolf.quant.compress import Compressor
from pgolf.quant.container import StoredTensor
from pgolf.quant.pruning import Magnitude, Selective, cheapest_first, without
from pgolf.quant.schemes import Float32, Half, Int8Rows, PercentileRows
from tests.quant.round_trip import compressor as exact_compressor
from tests.quant.round_trip import rounding_of
from tests.support import tiny_model
from tests.train.small import Spoken


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(2, 12), cols=st.integers(2, 12), share=st.floats(0.01, 0.9), seed=st.integers(0, 2**31))
def test_the_smallest_magnitudes_are_gone(rows: int, cols: int, share: float, seed: int) -> None:
    weight = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))
    found = Magnitude(share=share, min_elements=1).weights({"m": weight})["m"]
    ordered = weight.abs().flatten().sort().values
    gone = int((found == 0).sum())
    assert gone in (int(np.ceil(share * (weight.numel() - 1))), int(np.ceil(share * (weight.numel() - 1))) + 1)
    assert (
        torch.equal(found[found != 0], weight[found != 0])
        and float(weight[found == 0].abs().max()) == ordered[gone - 1]
    )


def test_small_and_flat_tensors_are_left_alone() -> None:
    state = {"m": torch.randn(3, 4), "gain": torch.randn(50), "count": torch.ones(5, 5, dtype=torch.int64)}
    found = Magnitude(share=0.5, min_elements=13).weights(state)
    assert all(found[name] is value for name, value in state.items())


def stored(*steps: float) -> list[StoredTensor]:
    """A matrix with a row of symbols (1, 0, 2, -1) for each step."""
    weight = torch.tensor([[1.0, 0.0, 2.0, -1.0]]) * torch.tensor(steps)[:, None]
    tensor = StoredTensor(
        "m", "matrix", "float32", PercentileRows(bits=2, percentiles=[1.0], least_clip=0.0).quantise(weight)
    )
    parts = {"symbols": np.tile(np.array([[1, 0, 2, -1]], np.int8), (len(steps), 1))}
    parts["scales"] = np.array(steps, np.float16)
    return [
        StoredTensor("m", "matrix", "float32", type(tensor.encoded)("rows", "int6", (len(steps), 4), parts)),
        StoredTensor("e", "embedding", "float32", type(tensor.encoded)("rows", "int6", (len(steps), 4), parts)),
    ]


def test_the_cheapest_symbols_of_one_go_first() -> None:
    tensors = stored(0.5, 0.125, 1.0)
    order = cheapest_first(tensors)
    assert {name: places.tolist() for name, places in order.items()} == {"m": [2, 3, 0, 1, 4, 5]}
    symbols = without(tensors, order, 3)[0].encoded.parts["symbols"]
    assert symbols.tolist() == [[0, 0, 2, -1], [0, 0, 2, 0], [1, 0, 2, -1]]
    assert without(tensors, order, 3)[1] is tensors[1]  # an embedding is none of them
    assert tensors[0].encoded.parts["symbols"][1, 0] == 1  # the original is as it was


def ones(tensors: list[StoredTensor]) -> int:
    """A size that falls by one byte with every symbol of one."""
    return 100 + int(sum((np.abs(one.encoded.parts["symbols"]) == 1).sum() for one in tensors if one.role == "matrix"))


@pytest.mark.parametrize(("target", "left"), [(200, 40), (140, 40), (139, 39), (117, 17), (100, 0), (50, 0)])
def test_as_few_as_it_takes(target: int, left: int) -> None:
    tensors = stored(*np.linspace(0.1, 2.0, 20).tolist())
    console = Spoken()
    found = Selective(target_bytes=target).symbols(tensors, ones(tensors), ones, console)
    assert ones(found) == 100 + left
    assert ("nothing is pruned" in console.said[-1]) == (target >= 140)
    assert ("do not fit" in console.said[-1]) == (target == 50)


def compressor(**changes: Any) -> Compressor:
    parts: dict[str, Any] = {"matrix": PercentileRows(bits=6, least_clip=0.0), "embedding": Int8Rows(), "head": None}
    parts |= {"scalar": Float32(), "gate": Half(), "coder": "zlib", "calibration_batches": 1}
    return Compressor(**{**parts, "min_quantised_elements": 1, **changes})


def test_an_artifact_that_is_pruned_to_its_size(tmp_path: Path) -> None:
    model = tiny_model(scramble=0.2)
    state, roles = model.state_dict(), parameter_roles(model)
    whole = compressor().compress(state, roles, {}, {}, tmp_path / "whole.pgolf")["weight_bytes"]
    target = int(0.99 * whole)
    report = compressor(pruning=Selective(target_bytes=target)).compress(state, roles, {}, {}, tmp_path / "a.pgolf")
    assert 0.98 * whole < report["weight_bytes"] == (tmp_path / "a.pgolf").stat().st_size <= target
    before, after = (dict(container.load(tmp_path / name)[0]) for name in ("whole.pgolf", "a.pgolf"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(roles[name] == "matrix" for name in changed)
    for name in changed:
        different = before[name] != after[name]
        assert not after[name][different].any()


def test_weights_that_are_zero_stay_zero_where_rounding_is_plain(tmp_path: Path) -> None:
    model, path = tiny_model(scramble=0.2), tmp_path / "a.pgolf"
    tool = compressor(pruning=Magnitude(share=0.4, min_elements=1))
    tool.compress(model.state_dict(), parameter_roles(model), {}, {}, path, Silent())
    assert float((container.load(path)[0]["blocks.0.mlp.fc.weight"] == 0).float().mean()) > 0.399


def test_an_export_that_was_promised_is_not_pruned() -> None:
    with pytest.raises(ValueError, match="knows nothing of quant/pruning"):
        rounding_of(tiny_model(), exact_compressor(pruning=Magnitude()))


@pytest.mark.parametrize(
    "make",
    [lambda: Magnitude(share=1.0), lambda: Magnitude(min_elements=0), lambda: Selective(target_bytes=0)],
)
def test_impossible_settings_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="must"):
        make()
