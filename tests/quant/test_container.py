"""The artifact file: what goes in comes out, and no damage goes unnoticed."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pgolf.errors import UserError
from pgolf.quant import container, packer
from pgolf.quant.container import StoredTensor
from pgolf.quant.encoded import Encoded
from pgolf.quant.header import MAGIC, PRELUDE
from pgolf.quant.schemes import Float32, Half, Int8Rows, Scheme, encode_exact

AVAILABLE = ["rans", "brotli", "zstd", "lzma", "zlib", "none"]
METADATA = {"model": {"dim": 8, "name": "ünï"}, "step": 12, "loops": [1, 2], "none": None}


def stored(name: str, role: str, tensor: Tensor, scheme: Scheme | None) -> StoredTensor:
    encoded = encode_exact(tensor) if scheme is None else scheme.quantise(tensor, None)
    return StoredTensor(name, role, str(tensor.dtype).removeprefix("torch."), encoded)


def example() -> list[StoredTensor]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return [
        stored("tok_emb.weight", "embedding", random(11, 8).bfloat16(), Int8Rows()),
        stored("blocks.0.attn.c_q.weight", "matrix", random(8, 6), Int8Rows()),
        stored("blocks.0.attn.q_gain", "scalar", random(4), Half()),
        stored("blocks.0.mlp.fc.weight", "matrix", random(16, 8), Int8Rows()),
        stored("blocks.1.attn.c_q.weight", "matrix", random(8, 6), Int8Rows()),
        stored("blocks.1.attn.q_gain", "scalar", random(4), Half()),
        stored("temperature", "scalar", random(), Float32()),
        stored("steps", "buffer", torch.tensor([3, 2**40]), None),
        stored("empty", "scalar", torch.zeros(0, 3), Half()),
    ]


def write_example(path: Path, coder: str = "zlib") -> bytes:
    packer.write(path, example(), METADATA, coder=coder)
    return path.read_bytes()


@pytest.mark.parametrize("coder", AVAILABLE)
@pytest.mark.parametrize("byte_shuffle", [True, False])
def test_round_trip(tmp_path: Path, coder: str, byte_shuffle: bool) -> None:
    path = tmp_path / "artifact.pgolf"
    tensors = example()
    report = packer.write(path, tensors, METADATA, coder=coder, byte_shuffle=byte_shuffle)
    state, metadata = container.load(path)
    assert metadata == METADATA
    assert list(state) == [tensor.name for tensor in tensors]
    assert state["tok_emb.weight"].dtype == torch.bfloat16
    assert state["temperature"].shape == ()
    assert state["steps"].tolist() == [3, 2**40]
    again, _ = container.read(path)
    for before, after in zip(tensors, again, strict=True):
        assert (before.name, before.role, before.dtype) == (after.name, after.role, after.dtype)
        assert before.encoded.scheme == after.encoded.scheme
        for part, values in before.encoded.parts.items():
            assert after.encoded.parts[part].dtype == values.dtype
            assert np.array_equal(after.encoded.parts[part], values)
    assert report["total_bytes"] == path.stat().st_size
    coded = sum(stream["coded"] for stream in report["streams"])
    assert report["header_bytes"] + coded == path.stat().st_size


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    first = write_example(tmp_path / "a", "brotli")
    assert write_example(tmp_path / "b", "brotli") == first


def test_blocks_share_a_stream_in_layer_order(tmp_path: Path) -> None:
    write_example(tmp_path / "a")
    header, _ = container.read_header(tmp_path / "a")
    names = [stream.name for stream in header.streams]
    assert "matrix/symbols/blocks.*.attn.c_q.weight" in names
    assert "matrix/scales/float16" in names
    by_name = {stream.name: stream for stream in header.streams}
    assert by_name["matrix/symbols/blocks.*.attn.c_q.weight"].raw == 2 * 48
    assert by_name["matrix/scales/float16"].raw == 2 * (8 + 16 + 8)
    assert by_name["scalar/values/float16"].stride == 2


def test_layout_is_the_documented_one(tmp_path: Path) -> None:
    """Read the file with nothing but struct, zlib and json."""
    data = write_example(tmp_path / "a")
    assert data[:8] == b"PGOLF\r\n\x1a"
    version, length, checksum = struct.unpack("<HII", data[8:18])
    assert version == 3
    assert zlib.crc32(data[8:14] + data[18 : 18 + length]) == checksum
    header = json.loads(zlib.decompress(data[18 : 18 + length]))
    offset = 18 + length
    raw = {}
    for stream in header["streams"]:
        coded = data[offset : offset + stream["coded"]]
        assert zlib.crc32(coded) == stream["crc32"]
        raw[stream["name"]] = zlib.decompress(coded)
        offset += stream["coded"]
    assert offset == len(data)
    symbols = np.frombuffer(raw["matrix/symbols/blocks.*.mlp.fc.weight"], np.int8)
    expected = example()[3].encoded.parts["symbols"]
    assert np.array_equal(symbols.reshape(8, 16).T, expected)
    planes = raw["scalar/values/float16"]
    low, high = planes[: len(planes) // 2], planes[len(planes) // 2 :]
    values = np.frombuffer(bytes(b for pair in zip(low, high, strict=True) for b in pair), "<f2")
    assert np.array_equal(values[:4], example()[2].encoded.parts["values"])


@pytest.mark.parametrize("coder", AVAILABLE)
def test_every_flipped_byte_is_noticed(tmp_path: Path, coder: str) -> None:
    path = tmp_path / "artifact.pgolf"
    data = bytearray(write_example(path, coder))
    step = max(1, len(data) // 150)
    for position in [*range(60), *range(60, len(data), step), len(data) - 1]:
        data[position] ^= 0x41
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"artifact\.pgolf"):
            container.load(path)
        data[position] ^= 0x41
    path.write_bytes(data)
    container.load(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_is_noticed(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "artifact.pgolf"
    whole = write_example(path)
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, min(len(whole), start + 40)))
    damaged = whole[:start] + data.draw(st.binary(max_size=40)) + whole[stop:]
    if damaged == whole:
        return
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"artifact\.pgolf"):
        container.load(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(length=st.floats(0, 1, exclude_max=True))
def test_truncation_is_noticed(tmp_path: Path, length: float) -> None:
    path = tmp_path / "artifact.pgolf"
    whole = write_example(path)
    path.write_bytes(whole[: int(length * len(whole))])
    with pytest.raises(UserError, match=r"artifact\.pgolf"):
        container.load(path)


def rewrite(path: Path, change, version: int = 2) -> None:
    """Write the file with another header and right checksums, as a foreign writer might."""
    _, offset = container.read_header(path)
    data = path.read_bytes()
    streams, header = data[offset:], json.loads(zlib.decompress(data[PRELUDE.size : offset]))
    change(header)
    packed = zlib.compress(json.dumps(header).encode())
    fields = struct.pack("<HI", version, len(packed))
    prelude = PRELUDE.pack(MAGIC, version, len(packed), zlib.crc32(packed, zlib.crc32(fields)))
    path.write_bytes(prelude + packed + streams)


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h.pop("coder"),
        lambda h: h.update(coder="paq"),
        lambda h: h["tensors"].pop(0),
        lambda h: h["tensors"][0].update(shape=[8, 11]),
        lambda h: h["tensors"][0].update(dtype="float12"),
        lambda h: h["tensors"][0].update(scheme=99),
        lambda h: h["tensors"][0]["parts"].pop("scales"),
        lambda h: h["tensors"][0]["parts"].update(scales=[77, [11]]),
        lambda h: h["tensors"][1]["parts"]["scales"].__setitem__(1, [10**9]),
        lambda h: h["schemes"][0].__setitem__(0, "trellis"),
        lambda h: h["streams"][0].update(dtype="object"),
        lambda h: h["streams"][0].update(coded=3),
        lambda h: h["streams"][0].update(sha256="0" * 32),
        lambda h: h["streams"][0].update(raw=10**12),
        lambda h: h["streams"][0].update(coding="rans"),
        lambda h: h["streams"][0].update(stride=3),
        lambda h: h["tensors"][0].update(name=h["tensors"][1]["name"]),
        lambda h: h["tensors"][0].update(shape=[11, -8]),
        lambda h: h["tensors"][0].update(shape=[True, 8]),
        lambda h: h["tensors"][0].update(parts=[]),
        lambda h: h.update(metadata=7),
        lambda h: h.update(tensors={}),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path: Path, change) -> None:
    path = tmp_path / "artifact.pgolf"
    write_example(path)
    rewrite(path, change)
    with pytest.raises(UserError, match=r"artifact\.pgolf"):
        container.load(path)


def test_other_versions_and_other_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "artifact.pgolf"
    write_example(path)
    rewrite(path, lambda header: None, version=1)
    with pytest.raises(UserError, match="version 1"):
        container.load(path)
    path.write_bytes(b"PK\x03\x04 something else entirely")
    with pytest.raises(UserError, match="not a pgolf artifact"):
        container.load(path)
    with pytest.raises(UserError, match="cannot read"):
        container.load(tmp_path / "missing")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), max_size=6),
    coder=st.sampled_from(AVAILABLE),
    seed=st.integers(0, 99),
)
def test_any_matrices_round_trip(tmp_path: Path, shapes: list[tuple[int, int]], coder: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tensors = [
        StoredTensor(
            f"blocks.{index}.weight",
            "matrix",
            "float32",
            Encoded(
                "rows",
                "test",
                shape,
                {
                    "symbols": rng.integers(-127, 128, shape).astype(np.int8),
                    "scales": rng.random(shape[0]).astype(np.float16),
                },
            ),
        )
        for index, shape in enumerate(shapes)
    ]
    path = tmp_path / "artifact.pgolf"
    packer.write(path, tensors, {}, coder=coder)
    state, _ = container.load(path)
    assert len(state) == len(tensors)
    for tensor in tensors:
        parts = tensor.encoded.parts
        expected = parts["symbols"].astype(np.float32) * parts["scales"].astype(np.float32)[:, None]
        assert np.array_equal(state[tensor.name].numpy(), expected)


def test_the_format_before_is_read_where_it_is_the_same(tmp_path: Path) -> None:
    tensor = StoredTensor("a", "matrix", "float32", Int8Rows().quantise(torch.randn(300, 70)))
    for coder in ("brotli", "rans"):
        path = tmp_path / coder
        packer.write(path, [tensor], {}, coder=coder)
        data = path.read_bytes()
        length = PRELUDE.unpack_from(data)[2]
        packed = data[PRELUDE.size : PRELUDE.size + length]
        fields = struct.pack("<HI", 2, length)
        prelude = PRELUDE.pack(MAGIC, 2, length, zlib.crc32(packed, zlib.crc32(fields)))
        path.write_bytes(prelude + data[PRELUDE.size :])
    assert "a" in container.load(tmp_path / "brotli")[0]
    with pytest.raises(UserError, match="format version 2, this pgolf reads version 3"):
        container.load(tmp_path / "rans")


@pytest.mark.parametrize("coder", ["rans", "brotli", "lzma"])
def test_bytes_do_not_depend_on_the_number_of_threads(coder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    for count in (1, 7):
        monkeypatch.setattr(packer.os, "cpu_count", lambda count=count: count)
        threads = torch.get_num_threads()
        torch.set_num_threads(count)
        built.append(packer.build(example(), METADATA, coder=coder))
        torch.set_num_threads(threads)
    assert built[0] == built[1]
