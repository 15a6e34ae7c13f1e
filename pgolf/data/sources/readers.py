"""Documents out of one file: .jsonl, .txt (each also as .gz and .zst) and .parquet, read as a stream.

Damage is a UserError that names the file and the line; it is raised when the reader comes to it, so a consumer must
not use what it was given before the file has ended well.
"""

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from pgolf.errors import UserError

MAX_DOCUMENT_BYTES = 2**30  # A line break that is missing must not fill the memory.
ZSTD_INPUT_BYTES = 16 * 2**10  # Small, because a few bytes can decompress to many.
PARQUET_ROWS = 256
BOM = b"\xef\xbb\xbf"

Texts = Iterator[tuple[str, str]]


def read_texts(path: Path, label: str, at: Callable[[int], None]) -> Texts:
    """(name, text) of every document of a file.

    Args:
        path: its name says what it is (see `format_of`).
        label: how documents are named: the label, with line or row number where a file holds several.
        at: called now and then with the position in the file, in bytes.

    UserError for a file that cannot be read, is damaged, truncated, not UTF-8, or holds something else than
    documents.
    """
    kind, opener = format_of(path)
    if kind is None:
        raise UserError(f"{path} is none of the files that can be read: {', '.join(SUFFIXES)}.")
    try:
        with open(path, "rb") as raw:
            yield from kind(opener(raw), path, label, lambda: at(raw.tell()))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error


def format_of(path: Path) -> tuple[Callable[..., Texts] | None, Callable[[BinaryIO], BinaryIO]]:
    """How a file is read, from its name: its kind (None when it is unknown) and what undoes its compression."""
    name = path.name
    for suffix, opener in COMPRESSIONS.items():
        if name.endswith(suffix) and not name.endswith(".parquet" + suffix):
            return KINDS.get(Path(name.removesuffix(suffix)).suffix), opener
    return KINDS.get(path.suffix), _plain


def _plain(raw: BinaryIO) -> BinaryIO:
    return raw


def _gunzip(raw: BinaryIO) -> BinaryIO:
    return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]


class _ZstdFile(io.RawIOBase):
    """The decompressed bytes of a .zst file. zstandard's own reader takes a truncated frame for a whole one."""

    def __init__(self, raw: BinaryIO):
        self._raw, self._out = raw, b""
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._input = b""

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill `buffer`; 0 at the end. EOFError for a file that ends inside a frame."""
        while not self._out:
            self._input = self._input or self._raw.read(ZSTD_INPUT_BYTES)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("it ends inside a compressed frame")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
            self._out = self._frame.decompress(self._input)
            self._input = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        count = min(len(buffer), len(self._out))
        buffer[:count] = self._out[:count]
        self._out = self._out[count:]
        return count


def _zstd(raw: BinaryIO) -> BinaryIO:
    return io.BufferedReader(_ZstdFile(raw), 2**16)


def _read(file: BinaryIO, whole: bool, path: Path, line: int) -> bytes:
    """The next line, or all the rest; what damaged compression raises becomes a sentence."""
    try:
        data = file.read(MAX_DOCUMENT_BYTES + 1) if whole else file.readline(MAX_DOCUMENT_BYTES + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise UserError(
            f"{path}, line {line}: the compressed data is damaged or truncated there ({error}); fetch the file again."
        ) from None
    if len(data) > MAX_DOCUMENT_BYTES:
        raise UserError(f"{path}, line {line} goes on for more than {MAX_DOCUMENT_BYTES} bytes: it is not a document.")
    return data


def _text_file(file: BinaryIO, path: Path, label: str, at: Callable[[], None]) -> Texts:
    data = _read(file, True, path, 1)
    try:
        yield label, data.decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise _not_utf8(path, line, error.start) from error
    at()


def _json_lines(file: BinaryIO, path: Path, label: str, at: Callable[[], None]) -> Texts:
    number, offset = 1, 0
    while line := _read(file, False, path, number):
        start = len(BOM) if number == 1 and line.startswith(BOM) else 0
        try:
            text = line[start:].decode()
        except UnicodeDecodeError as error:
            raise _not_utf8(path, number, offset + start + error.start) from error
        if text.strip():
            yield f"{label}:{number}", _document(text, path, number)
        number, offset = number + 1, offset + len(line)
        if number % 256 == 0:
            at()


def _document(text: str, path: Path, number: int) -> str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}, line {number} is not JSON ({error}).") from error
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise UserError(f"{path}, line {number} is not a document: an object with a string under 'text' is expected.")
    found: str = value["text"]
    return found


def _not_utf8(path: Path, line: int, offset: int) -> UserError:
    return UserError(f"{path}, line {line}: the byte at offset {offset} is not UTF-8; convert the file to UTF-8.")


def _parquet(file: BinaryIO, path: Path, label: str, at: Callable[[], None]) -> Texts:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"{path}: reading .parquet needs pyarrow, which is not installed; install `pgolf[parquet]`."
        ) from error
    number = 0
    try:
        table = pyarrow.parquet.ParquetFile(file, page_checksum_verification=True)
        if "text" not in table.schema_arrow.names:
            raise UserError(f"{path} has no column 'text'; its columns are {', '.join(table.schema_arrow.names)}.")
        for batch in table.iter_batches(batch_size=PARQUET_ROWS, columns=["text"]):
            for text in batch.column(0).to_pylist():
                number += 1
                if not isinstance(text, str):
                    raise UserError(f"{path}, row {number} is not a document: its 'text' is not a string.")
                yield f"{label}:{number}", text
            at()
        if number != table.metadata.num_rows:
            raise UserError(f"{path} gives {number} rows, its footer says {table.metadata.num_rows}: it is damaged.")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: a text after row {number} is not UTF-8 ({error}).") from error
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}, after row {number}: the file is damaged or truncated there ({error}).") from None


KINDS: dict[str, Callable[..., Texts]] = {".jsonl": _json_lines, ".txt": _text_file, ".parquet": _parquet}
COMPRESSIONS: dict[str, Callable[[BinaryIO], BinaryIO]] = {".gz": _gunzip, ".zst": _zstd}
SUFFIXES = (
    *(kind + compression for kind in (".jsonl", ".txt") for compression in ("", *COMPRESSIONS)),
    ".parquet",
)
