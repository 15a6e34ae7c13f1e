"""Reading the artifact file: flat, binary, no pickle; with numpy, torch and the library of the coder, if it has one.

The format is described in docs/artifact.md. Reading trusts nothing: whatever the bytes are, the result is the tensors
or a UserError, and memory stays within what the sizes in the header allow (`pgolf.quant.header`).
"""

import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgolf.errors import UserError
from pgolf.files import sha256_bytes
from pgolf.quant import rans, rotation
from pgolf.quant.coders import CODERS, unshuffle_bytes
from pgolf.quant.encoded import Encoded
from pgolf.quant.header import MAGIC, PRELUDE, READABLE, VERSION, Header, parse


@dataclass(frozen=True)
class StoredTensor:
    """One tensor on its way to or from the file; `dtype` is the reader's ("bfloat16")."""

    name: str
    role: str
    dtype: str
    encoded: Encoded


def _unsorted(parts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parts with their rows in the tensor's order; ValueError when the stored order is none."""
    if "row_order" not in parts:
        return parts
    order, symbols = parts["row_order"].astype(np.int64), parts["symbols"]
    if not np.array_equal(np.sort(order), np.arange(len(symbols))):
        raise ValueError("the order of the rows is not one")
    restored = np.empty_like(symbols)
    restored[order] = symbols
    return {name: part for name, part in parts.items() if name != "row_order"} | {"symbols": restored}


def is_column_major(dtype: str, shape: tuple[int, ...]) -> bool:
    """Whether a part of this shape is stored column by column."""
    return dtype == "int8" and len(shape) == 2


def read_header(path: Path) -> tuple[Header, int]:
    """The header and the offset of the first stream; UserError when the file is damaged."""
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
    if version not in READABLE:
        raise _of_another_version(path, version)
    try:
        header = parse(packed)
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    if version != VERSION and any(stream.coding == "rans" for stream in header.streams):
        raise _of_another_version(path, version)
    if header.coder not in CODERS:
        raise _damaged(path, f"the coder {header.coder[:40]!r} is unknown")
    return header, PRELUDE.size + length


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} is damaged: {what}. Copy it again or write it again from the checkpoint.")


def _of_another_version(path: Path, version: int) -> UserError:
    return UserError(
        f"{path} has format version {version}, this pgolf reads version {VERSION}; use the pgolf that wrote it."
    )


def _read_streams(path: Path, header: Header, offset: int) -> list[np.ndarray]:
    """The raw streams as flat arrays of their dtype, each checked before and after decoding."""
    expected, size = offset + sum(stream.coded for stream in header.streams), path.stat().st_size
    if size != expected:
        raise ValueError(f"it has {size} bytes instead of {expected}")
    coded = []
    with open(path, "rb") as file:
        file.seek(offset)
        for stream in header.streams:
            coded.append(file.read(stream.coded))
            if zlib.crc32(coded[-1]) != stream.crc32:
                raise ValueError(f"the checksum of stream {stream.name} is wrong")
    decoded = _decode_matrices(header, coded)
    for index, stream in enumerate(header.streams):
        if index not in decoded:
            try:
                plain = CODERS[header.coder].decode(coded[index], stream.raw)
            except ValueError as error:
                raise ValueError(f"stream {stream.name} does not decode ({error})") from error
            decoded[index] = unshuffle_bytes(plain, stream.stride)
    arrays = []
    for index, stream in enumerate(header.streams):
        raw = decoded[index]
        if sha256_bytes(raw)[:32] != stream.sha256:
            raise ValueError(f"stream {stream.name} decodes to other values")
        dtype = np.dtype(stream.dtype)
        arrays.append(np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype))
    return arrays


def _decode_matrices(header: Header, coded: list[bytes]) -> dict[int, bytes]:
    """The raw bytes of the streams of matrices, by index."""
    indices = [index for index, stream in enumerate(header.streams) if stream.coding == "rans"]
    shapes = [header.parts_of_stream(index) for index in indices]
    matrices = [[(one[0], one[1]) for one in stream if len(one) == 2 and 0 not in one] for stream in shapes]
    if any(header.streams[index].dtype != "int8" for index in indices) or any(
        len(kept) != len(stream) or not kept for kept, stream in zip(matrices, shapes, strict=True)
    ):
        raise ValueError("a stream of matrices holds something else")
    try:
        decoded = rans.decode([coded[index] for index in indices], matrices)
    except ValueError as error:
        raise ValueError(f"the streams of matrices do not decode ({error})") from error
    return {
        index: b"".join(matrix.T.tobytes() for matrix in stream) for index, stream in zip(indices, decoded, strict=True)
    }


def read(path: Path, *, as_stored: bool = False) -> tuple[list[StoredTensor], dict[str, Any]]:
    """Stored tensors (symbols and side information) and metadata; UserError when damaged.

    `as_stored`: rows that were sorted stay so, and their order is among the parts.
    """
    path = Path(path)
    header, offset = read_header(path)
    try:
        return _take_parts(header, _read_streams(path, header, offset), as_stored), header.metadata
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error


def _take_parts(header: Header, streams: list[np.ndarray], as_stored: bool) -> list[StoredTensor]:
    """Cut the streams into parts, in order; the header was checked, so they add up."""
    positions = [0] * len(streams)
    tensors = []
    for row in header.tensors:
        parts = {}
        for part, (index, shape) in row.parts.items():
            start = positions[index]
            positions[index] = start + math.prod(shape)
            values = streams[index][start : positions[index]]
            if is_column_major(values.dtype.name, shape):
                parts[part] = np.ascontiguousarray(values.reshape(shape[::-1]).T)
            else:
                parts[part] = values.reshape(shape)
        decoder, label = header.schemes[row.scheme]
        encoded = Encoded(decoder, label, row.shape, parts if as_stored else _unsorted(parts))
        tensors.append(StoredTensor(row.name, row.role, row.dtype, encoded))
    return tensors


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The dequantised tensors in their template dtypes and original order, and the metadata. Weights that were rotated
    before they were quantised (`pgolf.quant.rotation`) are rotated back.

    Raises UserError, naming the file, when it is missing, cut, altered, written by another version or rotated in a way
    that this one does not know.
    """
    path = Path(path)
    tensors, metadata = read(path)
    try:
        turns = rotation.of_metadata(metadata)
        rotation.check_count(tensor.encoded for tensor in tensors)
    except ValueError as error:
        raise UserError(f"{path}: {error}. Use the pgolf that wrote it.") from error
    state: dict[str, Tensor] = {}
    for tensor in tensors:
        dtype = getattr(torch, tensor.dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise _damaged(path, f"tensor {tensor.name} has the unknown dtype {tensor.dtype!r}")
        try:
            state[tensor.name] = rotation.decode_in_place(tensor.encoded, turns).to(dtype)
        except ValueError as error:
            raise UserError(f"{path}: tensor {tensor.name} cannot be decoded: {error}") from error
    return state, metadata
