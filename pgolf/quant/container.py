r"""The artifact file: flat, binary, no pickle; read with numpy, torch and one coder library.

All integers are little-endian.

    offset  bytes  meaning
    0       8      magic b"PGOLF\r\n\x1a"
    8       2      format version, unsigned (now 1)
    10      4      L, the length of the header in bytes, unsigned
    14      4      CRC-32 of bytes 8 to 13 followed by the header, unsigned
    18      L      header: zlib level 9 of UTF-8 JSON
    18+L    ...    the coded streams, one after another in the order of the header;
                   nothing after the last

The header is an object with the keys
    coder      name in pgolf.quant.coders.CODERS; every stream went through it
    metadata   the writer's own object (model configuration, step, seed, ...)
    schemes    list of [decoder, label]; decoder is a key of pgolf.quant.encoded.DECODERS
    streams    list of {name, dtype, stride, raw, coded, crc32, sha256}: raw and coded are lengths
               in bytes; crc32 is of the coded bytes; sha256 (the first 32 hexadecimal digits) of
               the raw bytes; stride is that of the byte shuffle done before the coder (1: none);
               dtype is numpy's name of the elements
    tensors    list of {name, role, dtype, shape, scheme, parts} in the order of the state dict:
               dtype is torch's name of the tensor a reader gets; scheme an index into schemes;
               parts maps a part's name to [stream, shape], stream an index into streams

The parts of a stream lie one after another in the order of the tensors. A part is stored in C
order, except that int8 parts of two axes are stored column by column: the values of one input share
their spread, so neighbours are alike.

Symbols of tensors whose names differ only in the block number share a stream; scales, and tensors
stored plainly, share one per role. So the coder sees enough data and the bytes of a role are known
exactly.
"""

import json
import math
import os
import re
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgolf.errors import UserError
from pgolf.files import atomic_open, sha256_bytes
from pgolf.quant.coders import CODERS, shuffle_bytes, unshuffle_bytes
from pgolf.quant.encoded import Encoded, decode

MAGIC = b"PGOLF\r\n\x1a"
VERSION = 1
PRELUDE = struct.Struct("<8sHII")


@dataclass(frozen=True)
class StoredTensor:
    """One tensor on its way to or from the file; `dtype` is the reader's ("bfloat16")."""

    name: str
    role: str
    dtype: str
    encoded: Encoded


def write(
    path: Path,
    tensors: list[StoredTensor],
    metadata: dict[str, Any],
    *,
    coder: str,
    byte_shuffle: bool = True,
) -> dict[str, Any]:
    """Write the artifact atomically; returns {header_bytes, total_bytes, streams}.

    `metadata` must be JSON. The streams are coded in parallel threads; the bytes do not depend on
    their number.
    """
    names, parts = _lay_out(tensors)
    raw_streams = [b"".join(_part_bytes(array) for array in arrays) for arrays in parts]
    dtypes = [arrays[0].dtype for arrays in parts]
    strides = [dtype.itemsize if byte_shuffle else 1 for dtype in dtypes]
    shuffled = [shuffle_bytes(raw, stride) for raw, stride in zip(raw_streams, strides, strict=True)]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        coded_streams = list(pool.map(CODERS[coder].encode, shuffled))
    streams = [
        {
            "name": name,
            "dtype": dtype.name,
            "stride": stride,
            "raw": len(raw),
            "coded": len(coded),
            "crc32": zlib.crc32(coded),
            "sha256": sha256_bytes(raw)[:32],
        }
        for name, dtype, stride, raw, coded in zip(names, dtypes, strides, raw_streams, coded_streams, strict=True)
    ]
    header = _header_bytes(tensors, metadata, coder, streams, names)
    with atomic_open(path) as file:
        file.write(header)
        for coded in coded_streams:
            file.write(coded)
    total = len(header) + sum(map(len, coded_streams))
    return {"header_bytes": len(header), "total_bytes": total, "streams": streams}


def stream_name(tensor: StoredTensor, part: str) -> str:
    """The stream of a part: by role, and for symbols by the name without block numbers."""
    if part != "symbols":
        dtype = tensor.encoded.parts[part].dtype.name
        return f"{tensor.role}/{part}/{dtype}"
    return f"{tensor.role}/symbols/{re.sub(r'[0-9]+', '*', tensor.name)}"


def _lay_out(tensors: list[StoredTensor]) -> tuple[list[str], list[list[np.ndarray]]]:
    """Stream names in order of first use, and the arrays of each."""
    streams: dict[str, list[np.ndarray]] = {}
    for tensor in tensors:
        for part, array in tensor.encoded.parts.items():
            streams.setdefault(stream_name(tensor, part), []).append(array)
    return list(streams), list(streams.values())


def _column_major(dtype: np.dtype, shape: tuple[int, ...]) -> bool:
    return dtype == np.int8 and len(shape) == 2


def _part_bytes(array: np.ndarray) -> bytes:
    ordered = array.T if _column_major(array.dtype, array.shape) else array
    return ordered.astype(array.dtype.newbyteorder("<")).tobytes()


def _header_bytes(
    tensors: list[StoredTensor],
    metadata: dict[str, Any],
    coder: str,
    streams: list[dict[str, Any]],
    names: list[str],
) -> bytes:
    """Prelude and header."""
    stream_index = {name: index for index, name in enumerate(names)}
    schemes = list(dict.fromkeys((t.encoded.decoder, t.encoded.scheme) for t in tensors))
    rows = [
        {
            "name": tensor.name,
            "role": tensor.role,
            "dtype": tensor.dtype,
            "shape": tensor.encoded.shape,
            "scheme": schemes.index((tensor.encoded.decoder, tensor.encoded.scheme)),
            "parts": {
                part: [stream_index[stream_name(tensor, part)], array.shape]
                for part, array in tensor.encoded.parts.items()
            },
        }
        for tensor in tensors
    ]
    header = {
        "coder": coder,
        "metadata": metadata,
        "schemes": schemes,
        "streams": streams,
        "tensors": rows,
    }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
    packed = zlib.compress(text.encode(), 9)
    fields = struct.pack("<HI", VERSION, len(packed))
    checksum = zlib.crc32(packed, zlib.crc32(fields))
    return PRELUDE.pack(MAGIC, VERSION, len(packed), checksum) + packed


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header object and the offset of the first stream; UserError when the file is damaged."""
    try:
        with open(path, "rb") as file:
            prelude = file.read(PRELUDE.size)
            if len(prelude) < PRELUDE.size or not prelude.startswith(MAGIC):
                raise UserError(f"{path} is not a pgolf artifact (it does not start with the magic).")
            _, version, length, checksum = PRELUDE.unpack(prelude)
            if length > os.fstat(file.fileno()).st_size:
                raise _damaged(path, "the header is cut off")
            packed = file.read(length)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error
    fields = prelude[len(MAGIC) : len(MAGIC) + 6]
    if zlib.crc32(packed, zlib.crc32(fields)) != checksum:
        raise _damaged(path, "the checksum of the header is wrong")
    if version != VERSION:
        raise UserError(
            f"{path} has format version {version}, this pgolf reads version {VERSION}; use the pgolf that wrote it."
        )
    try:
        return json.loads(zlib.decompress(packed)), PRELUDE.size + length
    except (zlib.error, ValueError) as error:
        raise _damaged(path, f"the header does not decode ({error})") from error


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} is damaged: {what}. Copy it again or write it again from the checkpoint.")


def _read_streams(path: Path, header: dict[str, Any], offset: int) -> list[np.ndarray]:
    """The raw streams as flat arrays of their dtype, each checked before and after decoding."""
    expected = offset + sum(stream["coded"] for stream in header["streams"])
    data = path.read_bytes()
    if len(data) != expected:
        raise _damaged(path, f"it has {len(data)} bytes instead of {expected}")
    arrays = []
    for stream in header["streams"]:
        coded = data[offset : offset + stream["coded"]]
        offset += stream["coded"]
        if zlib.crc32(coded) != stream["crc32"]:
            raise _damaged(path, f"the checksum of stream {stream['name']} is wrong")
        try:
            raw = unshuffle_bytes(CODERS[header["coder"]].decode(coded), stream["stride"])
        except ValueError as error:
            raise _damaged(path, f"stream {stream['name']} does not decode ({error})") from error
        if sha256_bytes(raw)[:32] != stream["sha256"]:
            raise _damaged(path, f"stream {stream['name']} decodes to other values")
        dtype = np.dtype(stream["dtype"])
        arrays.append(np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype))
    return arrays


def read(path: Path) -> tuple[list[StoredTensor], dict[str, Any]]:
    """Stored tensors (symbols and side information) and metadata; UserError when damaged."""
    path = Path(path)
    header, offset = read_header(path)
    try:
        streams = _read_streams(path, header, offset)
        return _take_parts(header, streams), header["metadata"]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise _damaged(path, f"the header contradicts itself ({error!r})") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error


def _take_parts(header: dict[str, Any], streams: list[np.ndarray]) -> list[StoredTensor]:
    """Cut the streams into parts, in order; ValueError when they do not add up."""
    positions = [0] * len(streams)
    tensors = []
    for row in header["tensors"]:
        parts = {}
        for part, (index, size) in row["parts"].items():
            shape, start = tuple(size), positions[index]
            positions[index] = start + math.prod(shape)
            values = streams[index][start : positions[index]]
            if _column_major(values.dtype, shape):
                parts[part] = np.ascontiguousarray(values.reshape(shape[::-1]).T)
            else:
                parts[part] = values.reshape(shape)
        decoder, label = header["schemes"][row["scheme"]]
        encoded = Encoded(decoder, label, tuple(row["shape"]), parts)
        tensors.append(StoredTensor(row["name"], row["role"], row["dtype"], encoded))
    if positions != [len(stream) for stream in streams]:
        raise ValueError("the tensors do not fill the streams")
    return tensors


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The dequantised tensors in their template dtypes and original order, and the metadata.

    Raises UserError, naming the file, when it is missing, cut, altered or written by another
    version.
    """
    path = Path(path)
    tensors, metadata = read(path)
    state: dict[str, Tensor] = {}
    for tensor in tensors:
        dtype = getattr(torch, tensor.dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise _damaged(path, f"tensor {tensor.name} has the unknown dtype {tensor.dtype!r}")
        try:
            state[tensor.name] = decode(tensor.encoded).to(dtype)
        except ValueError as error:
            raise UserError(f"{path}: tensor {tensor.name} cannot be decoded: {error}") from error
    return state, metadata
