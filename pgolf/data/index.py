"""The document index of a split: one fixed-size row and one name a document, in the order of its shards.

`documents_<split>.npy` is a structured array that is mapped into memory, never loaded: 48 bytes a document, so ten
million documents are 480 MB on disk and next to nothing in memory. `names_<split>.jsonl` holds one JSON string a line.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from pgolf.errors import UserError
from pgolf.files import atomic_open

ROW = np.dtype([("sha256", "u1", (32,)), ("bytes", "<i8"), ("tokens", "<i8")])
"""SHA-256 of the UTF-8 text of the original, its UTF-8 length, and its tokens without BOS."""

Rows = npt.NDArray[np.void]


def make_rows(sha256: Iterable[bytes], num_bytes: npt.ArrayLike, tokens: npt.ArrayLike) -> Rows:
    """Rows [documents] from 32-byte hashes, UTF-8 lengths and token counts (all of one length)."""
    digests = np.frombuffer(b"".join(sha256), np.uint8).reshape(-1, 32)
    rows = np.zeros(len(digests), ROW)
    rows["sha256"], rows["bytes"], rows["tokens"] = digests, num_bytes, tokens
    return rows


def index_name(split: str) -> str:
    """File name of the rows of a split."""
    return f"documents_{split}.npy"


def names_name(split: str) -> str:
    """File name of the names of a split."""
    return f"names_{split}.jsonl"


def name_line(name: str) -> bytes:
    """One line of the names file; a name may hold line breaks and undecodable bytes of a file name."""
    return (json.dumps(name) + "\n").encode()


def write_index(directory: Path, split: str, rows: Rows, names: Iterable[str]) -> None:
    """Write both files of a split from memory."""
    with atomic_open(directory / index_name(split)) as file:
        _write_header(file, len(rows))
        file.write(rows.astype(ROW, copy=False).tobytes())
    with atomic_open(directory / names_name(split)) as file:
        file.writelines(name_line(name) for name in names)


def assemble_index(directory: Path, split: str, rows: Path, names: Path) -> None:
    """Write both files of a split from a file of bare rows and a file of name lines, without loading them."""
    with atomic_open(directory / index_name(split)) as file, open(rows, "rb") as source:
        _write_header(file, rows.stat().st_size // ROW.itemsize)
        shutil.copyfileobj(source, file, 1 << 20)
    with atomic_open(directory / names_name(split)) as file, open(names, "rb") as source:
        shutil.copyfileobj(source, file, 1 << 20)


def _write_header(file: BinaryIO, count: int) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(ROW), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, header)


class DocumentIndex:
    """The index of one split, mapped into memory.

    Attributes:
        rows: ROW [documents], read-only.

    UserError when a file is missing or damaged.
    """

    def __init__(self, directory: Path, split: str):
        self.path, self.names_path = directory / index_name(split), directory / names_name(split)
        try:
            rows = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # numpy evaluates the header: damage there can raise anything, TokenError among it
            raise UserError(
                f"the document index {self.path} cannot be read ({error}); delete {directory} and prepare it again."
            ) from error
        if rows.dtype != ROW or rows.ndim != 1:
            raise UserError(f"{self.path} is not a document index; delete {directory} and prepare it again.")
        self.rows: Rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """int64 [documents + 1]: index of each document's BOS in the split's stream, and the stream's length.

        UserError when a document has fewer than no tokens.
        """
        if len(self) and int(self.rows["tokens"].min()) < 0:
            raise UserError(f"{self.path} is damaged: a document has fewer than no tokens; prepare the data again.")
        return np.concatenate([[0], np.cumsum(self.rows["tokens"] + 1)]).astype(np.int64)

    def names(self) -> Iterator[str]:
        """The names in order; UserError names a line that cannot be read, and a wrong number of lines."""
        number = 0
        try:
            with open(self.names_path, encoding="utf-8") as file:
                for line in file:
                    name = json.loads(line)
                    if not isinstance(name, str):
                        raise ValueError("it is not a string")
                    yield name
                    number += 1
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.names_path}, line {number + 1} cannot be read ({error}); prepare the data again."
            ) from error
        if number != len(self):
            raise UserError(f"{self.names_path} has {number} names for {len(self)} documents; prepare the data again.")

    def name(self, number: int) -> str:
        """The name of one document, for messages; its number where the names file is damaged."""
        try:
            return next(name for at, name in enumerate(self.names()) if at == number)
        except (UserError, StopIteration):
            return f"number {number} of {self.path.name}"
