"""Writing the artifact file (docs/artifact.md). What loads an artifact (`pgolf.quant.container`) needs none of this."""

import os
import re
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pgolf.files import atomic_open, sha256_bytes
from pgolf.quant import rans_encoder
from pgolf.quant.coders import CODERS, shuffle_bytes
from pgolf.quant.container import StoredTensor, is_column_major, read_header
from pgolf.quant.header import Header, Row, Stream, pack
from pgolf.quant.ordering import similarity_order
from pgolf.quant.rans_encoder import Matrix

RowOrder = Literal["stored", "similarity"]

SMALL = 1 << 14
"""Bytes of a stream of matrices up to which it is tried as plain bytes too."""


def write(
    path: Path,
    tensors: list[StoredTensor],
    metadata: dict[str, Any],
    *,
    coder: str,
    byte_shuffle: bool = True,
    row_order: RowOrder = "stored",
) -> dict[str, Any]:
    """Write the artifact atomically; returns {header_bytes, total_bytes, streams}. See `build` for the arguments."""
    header, coded = build(tensors, metadata, coder=coder, byte_shuffle=byte_shuffle, row_order=row_order)
    return write_built(path, header, coded)


def write_built(path: Path, header: Header, coded: list[bytes]) -> dict[str, Any]:
    """Write what `build` made atomically; returns {header_bytes, total_bytes, streams}."""
    head = pack(header)
    with atomic_open(path) as file:
        file.write(head)
        for one in coded:
            file.write(one)
    return {
        "header_bytes": len(head),
        "total_bytes": len(head) + sum(map(len, coded)),
        "streams": [asdict(stream) for stream in header.streams],
    }


def annotate(path: Path, more: dict[str, Any]) -> None:
    """Add entries to the metadata of an artifact; all else stays, and the file is replaced atomically."""
    header, offset = read_header(path)
    streams = path.read_bytes()[offset:]
    with atomic_open(path) as file:
        file.write(pack(replace(header, metadata={**header.metadata, **more})))
        file.write(streams)


def file_size(header: Header, coded: list[bytes]) -> int:
    """Bytes of the file that `write_built` would write."""
    return len(pack(header)) + sum(map(len, coded))


def build(
    tensors: list[StoredTensor],
    metadata: dict[str, Any],
    *,
    coder: str,
    byte_shuffle: bool = True,
    row_order: RowOrder = "stored",
) -> tuple[Header, list[bytes]]:
    """The header and the coded streams.

    `metadata` must be JSON. `row_order` similarity: rows of symbols are sorted so that like rows are neighbours, and
    their places stored. The streams are coded in parallel threads; the bytes do not depend on their number.
    """
    if row_order == "similarity":
        tensors = [_sorted(tensor) for tensor in tensors]
    streams: dict[str, list[tuple[StoredTensor, str]]] = {}
    for tensor in tensors:
        for part in tensor.encoded.parts:
            streams.setdefault(stream_name(tensor, part), []).append((tensor, part))
    arrays = [[tensor.encoded.parts[part] for tensor, part in members] for members in streams.values()]
    raw = [b"".join(_part_bytes(array) for array in one) for one in arrays]
    strides = [one[0].dtype.itemsize if byte_shuffle else 1 for one in arrays]
    plain = [shuffle_bytes(one, stride) for one, stride in zip(raw, strides, strict=True)]
    matrices = [
        CODERS[coder].matrices and _are_matrices(one, name) and _pays(list(members), CODERS[coder].encode, data)
        for (name, members), one, data in zip(streams.items(), arrays, plain, strict=True)
    ]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        coding = [
            None if is_rans else pool.submit(CODERS[coder].encode, one)
            for one, is_rans in zip(plain, matrices, strict=True)
        ]
        payloads = iter(
            _encode_matrices([one for one, is_rans in zip(streams.values(), matrices, strict=True) if is_rans])
        )
        coded = [next(payloads) if future is None else future.result() for future in coding]
    described = [
        Stream(
            name,
            one[0].dtype.name,
            stride,
            "rans" if is_rans else "bytes",
            len(bytes_),
            len(result),
            zlib.crc32(result),
            sha256_bytes(bytes_)[:32],
        )
        for name, one, stride, is_rans, bytes_, result in zip(
            streams, arrays, strides, matrices, raw, coded, strict=True
        )
    ]
    return _header(tensors, metadata, coder, described), coded


def _are_matrices(arrays: Sequence[np.ndarray], name: str) -> bool:
    """Whether all parts of a stream are symbols that the matrix coder takes."""
    symbols = name.split("/")[1] == "symbols"
    return symbols and all(array.dtype == np.int8 and array.ndim == 2 and array.size for array in arrays)


def _pays(stream: list[tuple[StoredTensor, str]], encode: Callable[[bytes], bytes], plain: bytes) -> bool:
    """Whether the coder of matrices makes less of a stream than its coder of bytes. Only asked of small ones, where
    side information weighs and trying both takes no time."""
    return len(plain) > SMALL or len(_encode_matrices([stream])[0]) < len(encode(plain))


def _encode_matrices(streams: list[list[tuple[StoredTensor, str]]]) -> list[bytes]:
    def matrix(tensor: StoredTensor, part: str) -> Matrix:
        parts = tensor.encoded.parts
        return Matrix(parts[part], int(parts.get("trellis_segment", 0)))

    return rans_encoder.encode([[matrix(tensor, part) for tensor, part in members] for members in streams])


def _sorted(tensor: StoredTensor) -> StoredTensor:
    """The tensor with the rows of its symbols in order of similarity, and the order as a part."""
    parts = tensor.encoded.parts
    symbols = parts.get("symbols")
    if symbols is None or symbols.ndim != 2 or symbols.dtype != np.int8 or "trellis_segment" in parts:
        return tensor
    order = similarity_order(symbols)
    narrow = order.astype(np.uint16) if len(order) <= 1 << 16 else order
    return replace(
        tensor, encoded=replace(tensor.encoded, parts=parts | {"symbols": symbols[order], "row_order": narrow})
    )


def stream_name(tensor: StoredTensor, part: str) -> str:
    """The stream of a part: by role, and for symbols by the name without block numbers."""
    if part != "symbols":
        dtype = tensor.encoded.parts[part].dtype.name
        return f"{tensor.role}/{part}/{dtype}"
    return f"{tensor.role}/symbols/{re.sub(r'[0-9]+', '*', tensor.name)}"


def _part_bytes(array: np.ndarray) -> bytes:
    ordered = array.T if is_column_major(array.dtype.name, array.shape) else array
    return ordered.astype(array.dtype.newbyteorder("<")).tobytes()


def _header(tensors: list[StoredTensor], metadata: dict[str, Any], coder: str, streams: list[Stream]) -> Header:
    index = {stream.name: at for at, stream in enumerate(streams)}
    schemes = list(dict.fromkeys((t.encoded.decoder, t.encoded.scheme) for t in tensors))
    rows = [
        Row(
            tensor.name,
            tensor.role,
            tensor.dtype,
            tensor.encoded.shape,
            schemes.index((tensor.encoded.decoder, tensor.encoded.scheme)),
            {part: (index[stream_name(tensor, part)], array.shape) for part, array in tensor.encoded.parts.items()},
        )
        for tensor in tensors
    ]
    return Header(coder, metadata, schemes, streams, rows)
