"""Entropy coders by name, and the byte shuffle that helps them with values of several bytes.

A coder turns bytes into fewer bytes without loss, the same bytes every time. To add one, write its
two functions and a row in CODERS. The libraries are imported when a coder is used, so reading an
artifact needs only the library that wrote it.
"""

import importlib
import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from pgolf.errors import UserError


@dataclass(frozen=True)
class Coder:
    """One lossless coder. `decode` raises ValueError on damaged bytes.

    `overhead` is coded size over order-0 entropy, measured on six-bit symbols of Gaussian weights
    (brotli: 32 million after GPTQ; the others: two million); it serves estimates only. None:
    symbols are stored at full width.
    """

    encode: Callable[[bytes], bytes]
    decode: Callable[[bytes], bytes]
    overhead: float | None


def _library(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"the coder needs the Python package {package}, which is not installed: "
            f"run `pip install {package}`, or choose quant.coder=zlib."
        ) from error


def _brotli_encode(data: bytes) -> bytes:
    return _library("brotli", "brotli").compress(data, quality=11)


def _brotli_decode(data: bytes) -> bytes:
    brotli = _library("brotli", "brotli")
    try:
        return brotli.decompress(data)
    except brotli.error as error:
        raise ValueError(f"brotli: {error}") from error


def _zstd_encode(data: bytes) -> bytes:
    return _library("zstandard", "zstandard").ZstdCompressor(level=22).compress(data)


def _zstd_decode(data: bytes) -> bytes:
    zstandard = _library("zstandard", "zstandard")
    try:
        return zstandard.ZstdDecompressor().decompress(data)
    except zstandard.ZstdError as error:
        raise ValueError(f"zstd: {error}") from error


def _lzma_encode(data: bytes) -> bytes:
    return lzma.compress(data, format=lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME)


def _lzma_decode(data: bytes) -> bytes:
    try:
        return lzma.decompress(data, format=lzma.FORMAT_XZ)
    except lzma.LZMAError as error:
        raise ValueError(f"lzma: {error}") from error


def _zlib_encode(data: bytes) -> bytes:
    return zlib.compress(data, 9)


def _zlib_decode(data: bytes) -> bytes:
    try:
        return zlib.decompress(data)
    except zlib.error as error:
        raise ValueError(f"zlib: {error}") from error


def _same(data: bytes) -> bytes:
    return data


CODERS: dict[str, Coder] = {
    "brotli": Coder(_brotli_encode, _brotli_decode, 1.010),
    "zstd": Coder(_zstd_encode, _zstd_decode, 1.017),
    "lzma": Coder(_lzma_encode, _lzma_decode, 1.050),
    "zlib": Coder(_zlib_encode, _zlib_decode, 1.156),
    "none": Coder(_same, _same, None),
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
