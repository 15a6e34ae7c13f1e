"""Files made to do harm under right checksums: tensors or a UserError, in bounded memory, every time."""

import contextlib
import json
import lzma
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brotli
import numpy as np
import pytest
import torch
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pgolf.errors import UserError
from pgolf.files import sha256_bytes
from pgolf.quant import container, header, packer, rans, rotation
from pgolf.quant.container import StoredTensor
from pgolf.quant.encoded import DECODERS, Encoded, decode
from pgolf.quant.header import MAGIC, PRELUDE
from pgolf.quant.hessian import Calibration
from pgolf.quant.rans_side import FORM, HEAD
from pgolf.quant.schemes import Binary, Gptq, Half, Int8Rows, Lqer, Ternary

BOUND = 1 << 26
"""Bytes that reading a file of some kilobytes may take; the interpreter and hypothesis included."""
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=6,
)
LIKELY = st.sampled_from(
    [0, 1, 2, 3, 8, 70, 2**31, 2**40, 2**63, -1, "rows", "groups", "steps", "plain", "int8", "bool", "rans", []]
)


def example() -> list[StoredTensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 70, generator=generator)
    gptq = Gptq(bits=4, clip_sigmas=4.0).quantise(weight, Calibration(torch.eye(70)))
    encoded = {
        "a.weight": Int8Rows().quantise(weight),
        "b.weight": Lqer(rank=1, group_size=0).correct(gptq, weight),
        "c.weight": Ternary(group_size=16).quantise(weight),
        "d.weight": Binary(group_size=16).quantise(weight),
        "gain": Half().quantise(weight[0]),
    }
    return [StoredTensor(name, "matrix", "float32", one) for name, one in encoded.items()]


def assemble(parsed: Any, streams: bytes) -> bytes:
    packed = zlib.compress(json.dumps(parsed).encode())
    fields = struct.pack("<HI", header.VERSION, len(packed))
    return PRELUDE.pack(MAGIC, header.VERSION, len(packed), zlib.crc32(packed, zlib.crc32(fields))) + packed + streams


def parts_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = PRELUDE.unpack_from(data)[2]
    packed = data[PRELUDE.size : PRELUDE.size + length]
    return json.loads(zlib.decompress(packed)), data[PRELUDE.size + length :]


def load_or_refuse(path: Path) -> int:
    """Load a file; any error but UserError, and any memory beyond the bound, fails the test. Gives its peak."""
    tracemalloc.start()
    try:
        with contextlib.suppress(UserError):
            state, _ = container.load(path)
            assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < BOUND
    return peak


def mutate(data: st.DataObject, node: Any) -> Any:
    """`node` with one value somewhere in it replaced or removed."""
    if isinstance(node, (dict, list)) and node and data.draw(st.integers(0, 5)) > 0:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = data.draw(st.sampled_from(keys))
        if data.draw(st.integers(0, 9)) == 0:
            kept = [other for other in keys if other != key]
            return {k: node[k] for k in kept} if isinstance(node, dict) else [node[k] for k in kept]
        changed = dict(node) if isinstance(node, dict) else list(node)
        changed[key] = mutate(data, node[key])
        return changed
    return data.draw(LIKELY | JSON)


@pytest.mark.parametrize("coder", ["rans", "brotli"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_headers_that_lie(tmp_path: Path, coder: str, data: st.DataObject) -> None:
    path = tmp_path / "artifact.pgolf"
    if not path.exists():
        packer.write(path, example(), {"step": 1}, coder=coder)
        (tmp_path / "whole").write_bytes(path.read_bytes())
    parsed, streams = parts_of((tmp_path / "whole").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        parsed = mutate(data, parsed)
    path.write_bytes(assemble(parsed, streams))
    assert load_or_refuse(path) < BOUND


GROWN = bytes(1 << 27)
BOMBS: dict[str, Callable[[], bytes]] = {
    "rans": lambda: b"\x01" + zlib.compress(GROWN, 1)[2:-4],
    "brotli": lambda: brotli.compress(GROWN, quality=1),
    "zstd": lambda: zstandard.ZstdCompressor(level=1).compress(GROWN),
    "lzma": lambda: lzma.compress(GROWN, preset=0),
    "zlib": lambda: zlib.compress(GROWN, 1),
}


@pytest.mark.parametrize("coder", BOMBS)
def test_streams_that_grow_are_stopped(tmp_path: Path, coder: str) -> None:
    """A stream that would become 128 MiB, behind a header that promises 100 bytes or 64 kB."""
    path = tmp_path / "artifact.pgolf"
    for elements in (50, 32_000):
        tensor = StoredTensor("a", "scalar", "float16", Half().quantise(torch.zeros(elements)))
        packer.write(path, [tensor], {}, coder=coder)
        parsed, _ = parts_of(path.read_bytes())
        bomb = BOMBS[coder]()
        parsed["streams"][0] |= {"coded": len(bomb), "crc32": zlib.crc32(bomb)}
        path.write_bytes(assemble(parsed, bomb))
        load_or_refuse(path)
        with pytest.raises(UserError, match="damaged"):
            container.load(path)


def test_a_header_that_grows_is_stopped(tmp_path: Path) -> None:
    path = tmp_path / "artifact.pgolf"
    for content in (b" " * (1 << 28), b"[" * (1 << 22)):
        packed = zlib.compress(content, 9)
        fields = struct.pack("<HI", header.VERSION, len(packed))
        checksum = zlib.crc32(packed, zlib.crc32(fields))
        path.write_bytes(PRELUDE.pack(MAGIC, header.VERSION, len(packed), checksum) + packed)
        load_or_refuse(path)
        with pytest.raises(UserError, match="damaged"):
            container.load(path)


def test_values_that_were_exchanged_under_right_checksums_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "artifact.pgolf"
    tensors = [StoredTensor("a", "matrix", "float32", Int8Rows().quantise(torch.eye(4)))]
    packer.write(path, tensors, {}, coder="none", row_order="similarity")
    parsed, streams = parts_of(path.read_bytes())
    (index,) = [at for at, one in enumerate(parsed["streams"]) if one["name"].startswith("matrix/row_order")]
    offset = sum(one["coded"] for one in parsed["streams"][:index])
    order = bytes(8)  # row 0 four times
    plain = streams[:offset] + order + streams[offset + 8 :]
    parsed["streams"][index] |= {"crc32": zlib.crc32(order), "sha256": sha256_bytes(order)[:32]}
    path.write_bytes(assemble(parsed, plain))
    with pytest.raises(UserError, match="order of the rows"):
        container.load(path)


ARRAYS = st.sampled_from([np.int8, np.uint8, np.int16, np.int32, np.float16, np.float32]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6))
)
NAMES = [
    "symbols",
    "scales",
    "group_starts",
    "group_size",
    "group_scales",
    "factor_a",
    "scales_a",
    "factor_b",
    "scales_b",
    "values",
    "base3",
    "mask",
    "signs",
    "steps",
    "trellis_segment",
]


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(sorted(DECODERS)),
    st.dictionaries(st.sampled_from(NAMES), ARRAYS, max_size=8),
    st.lists(st.sampled_from([0, 1, 2, 3, 6, 36, 2**20, 2**30]), max_size=3),
)
def test_parts_that_do_not_belong_together(decoder: str, parts: dict[str, np.ndarray], shape: list[int]) -> None:
    tracemalloc.start()
    try:
        with contextlib.suppress(ValueError):
            assert decode(Encoded(decoder, "x", tuple(shape), parts)).shape == tuple(shape)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < BOUND


@pytest.mark.parametrize(
    ("decoder", "parts", "shape"),
    [
        ("rows", {"symbols": np.ones((1, 10**5), np.int8), "scales": np.ones((10**5, 1), np.float16)}, (10**5, 10**5)),
        ("rows", {"symbols": np.ones((1, 10**5), np.int8), "scales": np.ones(10**5, np.float16)}, (10**5, 10**5)),
        (
            "groups",
            {"signs": np.ones(4, np.uint8), "scales": np.ones(1, np.float16), "group_size": np.array(2**31 - 1)},
            (2**30,),
        ),
        (
            "groups",
            {"symbols": np.ones(4, np.int8), "scales": np.ones(4, np.float16), "group_size": np.array(2**31 - 1)},
            (4,),
        ),
        ("steps", {"symbols": np.ones((1, 10**5), np.int8), "steps": np.zeros(10**5, np.int16)}, (10**5, 10**5)),
        (
            "rows",
            {
                "symbols": np.ones((1, 10**5), np.int8),
                "scales": np.ones(1, np.float16),
                "factor_a": np.ones((10**5, 1), np.int8),
                "scales_a": np.ones(10**5, np.float16),
                "factor_b": np.ones((1, 10**5), np.int8),
                "scales_b": np.ones(1, np.float16),
            },
            (10**5, 10**5),
        ),
    ],
)
def test_little_does_not_become_much(decoder: str, parts: dict[str, np.ndarray], shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="fit together"):
        decode(Encoded(decoder, "x", shape, parts))


def forged(path: Path, rows: int, cols: int, lanes: int) -> None:
    """A file of some hundred bytes under right checksums: a matrix of zeros, whose symbols need no words."""
    side = zlib.compress(HEAD.pack(0, 0, 0, 0, 0, 0) + FORM.pack(1, 1, 0, 0, 0))
    coded = struct.pack(f"<H{lanes}II", lanes, *[1 << 16] * lanes, len(side)) + side
    stream = {"name": "matrix/symbols/a", "dtype": "int8", "stride": 1, "coding": "rans", "raw": rows * cols}
    stream |= {"coded": len(coded), "crc32": zlib.crc32(coded), "sha256": sha256_bytes(bytes(rows * cols))[:32]}
    step = b"\0\0\0"
    other = {"name": "matrix/steps/int16", "dtype": "int16", "stride": 1, "coding": "bytes", "raw": 2, "coded": 3}
    other |= {"crc32": zlib.crc32(step), "sha256": sha256_bytes(step[1:])[:32]}
    parts = {"symbols": [0, [rows, cols]], "steps": [1, [1]]}
    tensor = {"name": "a", "role": "matrix", "dtype": "float32", "shape": [rows, cols], "scheme": 0, "parts": parts}
    parsed = {"coder": "rans", "metadata": {}, "schemes": [["steps", "x"]], "streams": [stream, other]}
    path.write_bytes(assemble(parsed | {"tensors": [tensor]}, coded + step))


def test_a_small_file_does_not_keep_the_reader_busy(tmp_path: Path) -> None:
    """Symbols that need no words cost bytes nothing and the decoder a step each."""
    path = tmp_path / "artifact.pgolf"
    forged(path, 128, 64, lanes=1)
    state, _ = container.load(path)
    assert state["a"].shape == (128, 64) and not state["a"].any()
    forged(path, 1 << 15, 64, lanes=1)
    assert path.stat().st_size < 1000
    with pytest.raises(UserError, match="2,097,152 steps with 1 lanes"):
        container.load(path)


def test_matrices_that_a_reader_would_refuse_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rans, "MAX_STEPS", 1000)
    tensor = StoredTensor("a", "matrix", "float32", Int8Rows().quantise(torch.randn(1001, 64)))
    with pytest.raises(UserError, match=r"quant\.coder=rans cannot code this model.*another coder"):
        packer.write(tmp_path / "artifact.pgolf", [tensor], {}, coder="rans")


def test_what_decodes_to_too_much_is_refused_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "artifact.pgolf"
    packer.write(path, example(), {}, coder="brotli")
    parsed, streams = parts_of(path.read_bytes())
    lying = json.loads(json.dumps(parsed))
    for tensor in lying["tensors"]:
        tensor["shape"] = [1 << 14, 1 << 13]  # each of them would be allowed
    path.write_bytes(assemble(lying, streams))
    with pytest.raises(UserError, match="more than 268435456 elements"):
        container.load(path)
    empty = {"dtype": "int8", "stride": 1, "coding": "bytes", "raw": 0, "coded": 0, "crc32": 0, "sha256": "0"}
    parsed["streams"] += [{"name": str(index), **empty} for index in range(1024)]
    path.write_bytes(assemble(parsed, streams))
    with pytest.raises(UserError, match="at most 1024 are read"):
        container.load(path)


def test_rotations_of_many_sizes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "artifact.pgolf"
    encoded = [rotation.marked(Int8Rows().quantise(torch.ones(2, size)), "attn_in") for size in range(100, 109)]
    tensors = [StoredTensor(f"a{index}", "matrix", "float32", one) for index, one in enumerate(encoded)]
    packer.write(path, tensors, {"rotation": {"kind": "online", "seed": 1}}, coder="none")
    with pytest.raises(UserError, match="9 different rotations"):
        container.load(path)


@pytest.mark.parametrize("segment", [0, 1 << 16])
def test_segments_of_a_trellis_are_bounded(segment: int) -> None:
    parts = {"symbols": np.ones((2, 2), np.int8), "steps": np.zeros(2, np.int16), "trellis_segment": np.array(segment)}
    with pytest.raises(ValueError, match="no rows, or too many"):
        decode(Encoded("steps", "x", (2, 2), parts))


def test_groups_of_columns_are_counted() -> None:
    parts = {"symbols": np.ones((2, 4), np.int8), "scales": np.ones(2, np.float16), "group_size": np.array(2)}
    parts |= {"group_scales": np.ones(2, np.float16), "group_starts": np.zeros(3, np.int32)}
    with pytest.raises(ValueError, match="groups of columns overlap"):
        decode(Encoded("rows", "x", (2, 4), parts))
