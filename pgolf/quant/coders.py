"""Entropy coders by name, and the byte shuffle that helps them with values of several bytes.

A coder turns bytes into fewer bytes without loss, the same bytes every time; `rans` has a way of its own with matrices
of symbols (`pgolf.quant.rans`). To add one, write its two functions and a row in CODERS. Libraries are imported when a
coder is used, so reading an artifact needs only the library that wrote it; rans, lzma and zlib need none.
"""

import importlib
import lzma
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from pgolf.errors import UserError


@dataclass(frozen=True)
class Coder:
    """One lossless coder.

    `encode` takes bytes; `decode` takes coded bytes and the exact size of what comes out, never takes much more memory
    than that, and raises ValueError on damaged bytes.

    `overhead` is coded size over order-0 entropy, measured on six-bit symbols of Gaussian weights (brotli: 32 million
    after GPTQ; the others: two million); it serves estimates only. None: symbols are stored at full width.

    `columns` is the share that the coder finds of what the columns of trained weights, each with a spread of its own,
    could save; 0 where it sees one distribution for all. Measured beside an order-0 bound on synthetic weights of the
    published sizes with such columns: lrzip gave 0.46 of it, on weights of a small model 0.74. For estimates only.

    `matrices`: matrices of symbols go through `pgolf.quant.rans` instead.

    `program`: the external program that does it; without it, an artifact can be neither written nor read.
    """

    encode: Callable[[bytes], bytes]
    decode: Callable[[bytes, int], bytes]
    overhead: float | None
    columns: float = 0.0
    matrices: bool = False
    program: str | None = None


def _library(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"the coder needs the Python package {package}, which is not installed: "
            f"run `pip install {package}`, or choose quant.coder=rans."
        ) from error


def _brotli_encode(data: bytes) -> bytes:
    return _library("brotli", "brotli").compress(data, quality=11)


def _brotli_decode(data: bytes, size: int) -> bytes:
    brotli = _library("brotli", "brotli")
    decompressor, result = brotli.Decompressor(), bytearray()
    try:
        result += decompressor.process(data, output_buffer_limit=size + 1)
        while not decompressor.is_finished() and len(result) <= size and not decompressor.can_accept_more_data():
            result += decompressor.process(b"", output_buffer_limit=size + 1)
    except brotli.error as error:
        raise ValueError(f"brotli: {error}") from error
    return _whole("brotli", bytes(result), size, decompressor.is_finished())


def _zstd_encode(data: bytes) -> bytes:
    return _library("zstandard", "zstandard").ZstdCompressor(level=22).compress(data)


def _zstd_decode(data: bytes, size: int) -> bytes:
    zstandard = _library("zstandard", "zstandard")
    try:
        with zstandard.ZstdDecompressor().stream_reader(data) as reader:
            result = reader.read(size + 1)
    except (zstandard.ZstdError, MemoryError) as error:
        raise ValueError(f"zstd: {error}") from error
    return _whole("zstd", result, size, True)


def _lzma_encode(data: bytes) -> bytes:
    return lzma.compress(data, format=lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME)


def _lzma_decode(data: bytes, size: int) -> bytes:
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=LZMA_MEMORY)
    try:
        result = decompressor.decompress(data, max_length=size + 1)
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(f"lzma: {error}") from error
    return _whole("lzma", result, size, decompressor.eof and not decompressor.unused_data)


def _zlib_encode(data: bytes) -> bytes:
    return zlib.compress(data, 9)


def _zlib_decode(data: bytes, size: int) -> bytes:
    decompressor = zlib.decompressobj()
    try:
        result = decompressor.decompress(data, size + 1)
    except zlib.error as error:
        raise ValueError(f"zlib: {error}") from error
    return _whole("zlib", result, size, decompressor.eof and not decompressor.unused_data)


def _same(data: bytes) -> bytes:
    return data


def _same_decode(data: bytes, size: int) -> bytes:
    return _whole("none", data, size, True)


def _whole(coder: str, result: bytes, size: int, ended: bool) -> bytes:
    """`result` if it has the expected size and the coded bytes ended with it."""
    if len(result) != size or not ended:
        raise ValueError(f"{coder}: the bytes are cut off, or are not those of {size} bytes")
    return result


LZMA_MEMORY = 1 << 27
"""Bytes a reader lends to lzma, whose dictionary may be as large as the file says."""

LZMA_RAW = [
    {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 0, "pb": 0, "dict_size": 1 << 24}
]


def _plain_encode(data: bytes) -> bytes:
    """The smaller of raw zlib and raw LZMA2, with no framing but the first byte, which says which."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    candidates = [
        b"\x00" + data,
        b"\x01" + deflate.compress(data) + deflate.flush(),
        b"\x02" + lzma.compress(data, format=lzma.FORMAT_RAW, filters=LZMA_RAW),
    ]
    return min(candidates, key=len)


def _plain_decode(data: bytes, size: int) -> bytes:
    method, body = data[:1], data[1:]
    try:
        if method == b"\x01":
            inflate = zlib.decompressobj(-15)
            result, ended = inflate.decompress(body, size + 1), inflate.eof
        elif method == b"\x02":
            decompressor = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=LZMA_RAW)
            result, ended = decompressor.decompress(body, max_length=size + 1), decompressor.eof
        else:
            result, ended = body, method == b"\x00"
    except (zlib.error, lzma.LZMAError, EOFError) as error:
        raise ValueError(f"rans: {error}") from error
    return _whole("rans", result, size, ended)


LRZIP_SIZE = struct.Struct("<4s2xQ")
"""The beginning of an lrzip file: its magic, and the size of what it holds."""


def _lrzip(arguments: list[str], data: bytes) -> bytes:
    program = shutil.which("lrzip")
    if program is None:
        raise UserError(
            "the coder needs the program lrzip, which is not installed: install it (for example "
            "`apt-get install lrzip`), or choose quant.coder=rans, which is smaller."
        )
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in"), Path(folder, "out")
        source.write_bytes(data)
        command = [program, *arguments, "-q", "-o", str(target), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not target.is_file():
            raise ValueError(f"lrzip: {done.stderr.strip() or f'exit status {done.returncode}'}")
        return target.read_bytes()


def _lrzip_encode(data: bytes) -> bytes:
    return _lrzip(["-z", "-L", "9"], data) if data else b""


def _lrzip_decode(data: bytes, size: int) -> bytes:
    if not data and not size:
        return b""
    if len(data) < LRZIP_SIZE.size or LRZIP_SIZE.unpack_from(data) != (b"LRZI", size):
        raise ValueError(f"lrzip: the bytes are not those of {size} bytes")
    return _whole("lrzip", _lrzip(["-d"], data), size, True)


CODERS: dict[str, Coder] = {
    "rans": Coder(_plain_encode, _plain_decode, 1.004, columns=1.0, matrices=True),
    "brotli": Coder(_brotli_encode, _brotli_decode, 1.010),
    "zstd": Coder(_zstd_encode, _zstd_decode, 1.017),
    "lzma": Coder(_lzma_encode, _lzma_decode, 1.050),
    "zlib": Coder(_zlib_encode, _zlib_decode, 1.156),
    "lrzip": Coder(_lrzip_encode, _lrzip_decode, 1.0, columns=0.5, program="lrzip"),
    "none": Coder(_same, _same_decode, None),
}


def shuffle_bytes(data: bytes, stride: int) -> bytes:
    """All bytes at positions 0 modulo `stride`, then those at 1, and so on; any length.

    The high bytes of 16-bit floats are alike, the low ones are noise: apart, they code better.
    Stride 2 is the published transform (there behind the five bytes b"BSHF" and the stride).
    """
    if stride == 1:
        return data
    values = np.frombuffer(data, np.uint8)
    return b"".join(values[start::stride].tobytes() for start in range(stride))


def unshuffle_bytes(data: bytes, stride: int) -> bytes:
    """The inverse of `shuffle_bytes`."""
    if stride == 1:
        return data
    values = np.frombuffer(data, np.uint8)
    result = np.empty_like(values)
    position = 0
    for start in range(stride):
        count = len(result[start::stride])
        result[start::stride] = values[position : position + count]
        position += count
    return result.tobytes()
