"""The header of an artifact: what it may say, checked before anything is believed."""

import json
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

MAGIC = b"PGOLF\r\n\x1a"
VERSION, READABLE = 3, (2, 3)
"""What is written, and what is read: version 2 differs in the streams of matrices alone."""
PRELUDE = struct.Struct("<8sHII")

MAX_HEADER_BYTES = 1 << 23
"""Size of a header after decompression; that of the published models is near 10 kB."""
MAX_RAW_BYTES = 1 << 30
"""Size of all streams after decompression; a model of 100 million weights stays below it even in float32."""
MAX_ELEMENTS = 1 << 28
"""Elements of all tensors, and of all their parts: what they decode to is bounded too, not only what is stored."""
MAX_STREAMS = 1 << 10
"""Streams; that of the published models is near 30. Each takes its time, however short it is."""
MAX_DIMENSIONS = 8
DTYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float16", "float32", "float64", "bool")
STRIDES = (1, 2, 4, 8)

Shape = tuple[int, ...]
Coding = Literal["bytes", "rans"]


@dataclass(frozen=True)
class Stream:
    """One coded stream; see docs/artifact.md."""

    name: str
    dtype: str
    stride: int
    coding: Coding
    raw: int
    coded: int
    crc32: int
    sha256: str


@dataclass(frozen=True)
class Row:
    """One tensor as the header describes it: `parts` is name -> (index of the stream, shape)."""

    name: str
    role: str
    dtype: str
    shape: Shape
    scheme: int
    parts: Mapping[str, tuple[int, Shape]]


@dataclass(frozen=True)
class Header:
    """All that the header says; `schemes` holds (decoder, label)."""

    coder: str
    metadata: dict[str, Any]
    schemes: list[tuple[str, str]]
    streams: list[Stream]
    tensors: list[Row]

    def parts_of_stream(self, index: int) -> list[Shape]:
        """The shapes of the parts that lie in a stream, in order."""
        return [shape for row in self.tensors for at, shape in row.parts.values() if at == index]


def pack(header: Header) -> bytes:
    """Prelude and header as bytes.."""
    text = json.dumps(asdict(header), separators=(",", ":"), ensure_ascii=False)
    packed = zlib.compress(text.encode(), 9)
    fields = struct.pack("<HI", VERSION, len(packed))
    return PRELUDE.pack(MAGIC, VERSION, len(packed), zlib.crc32(packed, zlib.crc32(fields))) + packed


def parse(packed: bytes) -> Header:
    """The header from its compressed bytes. Raises ValueError saying what is wrong with it."""
    inflate = zlib.decompressobj()
    try:
        text = inflate.decompress(packed, MAX_HEADER_BYTES)
    except zlib.error as error:
        raise ValueError(f"the header does not decode ({error})") from error
    if not inflate.eof or inflate.unused_data:
        raise ValueError(f"the header is cut off, or longer than {MAX_HEADER_BYTES} bytes")
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("the header is nested too deep") from error
    try:
        return _header(value)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"the header has another form ({type(error).__name__}: {error})") from error


def _header(value: dict[str, Any]) -> Header:
    streams = [_stream(one) for one in _typed(value["streams"], list)]
    schemes = [(_typed(decoder, str), _typed(label, str)) for decoder, label in _typed(value["schemes"], list)]
    tensors = [_row(one) for one in _typed(value["tensors"], list)]
    header = Header(_typed(value["coder"], str), _typed(value["metadata"], dict), schemes, streams, tensors)
    if sum(stream.raw for stream in streams) > MAX_RAW_BYTES:
        raise ValueError(f"the streams hold more than {MAX_RAW_BYTES} bytes")
    if len(streams) > MAX_STREAMS:
        raise ValueError(f"it has {len(streams)} streams, and at most {MAX_STREAMS} are read")
    shapes = [row.shape for row in tensors], [shape for row in tensors for _, shape in row.parts.values()]
    if any(sum(map(math.prod, one)) > MAX_ELEMENTS for one in shapes):
        raise ValueError(f"the tensors have more than {MAX_ELEMENTS} elements")
    if len({row.name for row in tensors}) != len(tensors):
        raise ValueError("two tensors have one name")
    _check_fill(header)
    return header


def _check_fill(header: Header) -> None:
    """ValueError unless the parts fill the streams exactly and every scheme is there."""
    filled = [0] * len(header.streams)
    for row in header.tensors:
        if not row.scheme < len(header.schemes):
            raise ValueError(f"tensor {row.name} has no scheme")
        for index, shape in row.parts.values():
            if not index < len(filled):
                raise ValueError(f"tensor {row.name} has no stream")
            filled[index] += math.prod(shape) * _width(header.streams[index].dtype)
    if filled != [stream.raw for stream in header.streams]:
        raise ValueError("the tensors do not fill the streams")


def _width(dtype: str) -> int:
    """Bytes of one element."""
    return 1 if dtype == "bool" else int(dtype.lstrip("abcdefghijklmnopqrstuvwxyz")) // 8


def _stream(value: dict[str, Any]) -> Stream:
    stream = Stream(
        name=_typed(value["name"], str),
        dtype=_one_of(value["dtype"], DTYPES),
        stride=_one_of(_count(value["stride"]), STRIDES),
        coding=_one_of(value["coding"], ("bytes", "rans")),
        raw=_count(value["raw"]),
        coded=_count(value["coded"]),
        crc32=_count(value["crc32"]),
        sha256=_typed(value["sha256"], str),
    )
    if stream.coded > 2 * stream.raw + (1 << 16):
        raise ValueError(f"stream {stream.name} is longer coded than plain")
    return stream


def _row(value: dict[str, Any]) -> Row:
    parts = {name: (_count(index), _shape(size)) for name, (index, size) in _typed(value["parts"], dict).items()}
    return Row(
        name=_typed(value["name"], str),
        role=_typed(value["role"], str),
        dtype=_typed(value["dtype"], str),
        shape=_shape(value["shape"]),
        scheme=_count(value["scheme"]),
        parts=parts,
    )


def _shape(value: Any) -> Shape:
    shape = tuple(_count(size) for size in _typed(value, list))
    if len(shape) > MAX_DIMENSIONS or math.prod(shape) > MAX_ELEMENTS or max(shape, default=0) > MAX_ELEMENTS:
        raise ValueError("a shape is too large")
    return shape


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"the header has {str(value)[:40]!r} where a {kind.__name__} belongs")
    return value


def _count(value: Any) -> int:
    if _typed(value, int) < 0:
        raise ValueError("the header has a negative number where a count belongs")
    return value


def _one_of(value: Any, choices: tuple[Any, ...]) -> Any:
    if value not in choices:
        raise ValueError(f"the header has {str(value)[:40]!r} where one of {', '.join(map(str, choices))} belongs")
    return value
