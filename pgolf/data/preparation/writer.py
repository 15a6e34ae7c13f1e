"""Writing one split of a preparation: shards, byte counts and document index, so that a killed one can go on.

After each full shard the position is recorded: the shards that are whole, the documents that lie in them from
beginning to end, and how much of the next document does. Preparing again then reads the source from the beginning,
skips what is whole, encodes the document that crosses the last shard end again, and drops its first tokens; the
result is the same, byte for byte.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.data.encoding.frontend import Encoded
from pgolf.data.index import ROW, assemble_index, make_rows, name_line
from pgolf.data.shards import Tokens, shard_length, write_shard
from pgolf.data.sources.documents import Document, Split
from pgolf.data.validation import BOS_ID
from pgolf.errors import UserError
from pgolf.files import read_json, write_json

BEGINNING = {"shards": 0, "documents": 0, "taken": 0, "offset": 0, "names_bytes": 0, "no_token_left": 0}


class SplitWriter:
    """The writer of one split; it begins where an interrupted one stopped.

    Args:
        data: folder of the shards and the index.
        state: folder of what is needed to go on.
        split: "train" or "val"; shards are named after it.
        shard_tokens: values of every shard but the last.
        sidecar: write the bytes of each token too, in `<split>_bytes` shards.

    Attributes:
        taken: documents of the split's stream that must not be given again.
        shards: shards that are whole.
        no_token_left: documents that were given and had no token.
    """

    def __init__(self, data: Path, state: Path, split: Split, shard_tokens: int, sidecar: bool):
        self.data, self.split, self.shard_tokens = data, split, shard_tokens
        self.prefixes = [split, f"{split}_bytes"] if sidecar else [split]
        self._paths = {name: state / f"{split}.{name}" for name in ("json", "rows", "names")}
        kept = read_json(self._paths["json"]) if self._paths["json"].exists() else BEGINNING
        self.shards, self.taken, self._documents = kept["shards"], kept["taken"], kept["documents"]
        self.no_token_left, self._drop = kept["no_token_left"], kept["offset"]
        self._complete_end = self.shards * shard_tokens - self._drop  # Where the last whole document ends.
        self._end = self._complete_end  # Where the last given document ends.
        self._pending: list[tuple[int, int, Document, int]] = []  # (position in the stream, end, document, tokens)
        self._empty: list[int] = []
        self._buffers = [np.empty(shard_tokens, np.uint16) for _ in self.prefixes]
        self._filled = 0
        self._recover(kept["documents"] * ROW.itemsize, kept["names_bytes"])

    def add(self, first: int, documents: Sequence[Document], encoded: Encoded) -> None:
        """Append documents, the first of which has the position `first` in the split's stream.

        Full shards are written at once. `encoded.token_bytes` is not read without a sidecar.
        """
        has_tokens = encoded.lengths > 0
        lengths = encoded.lengths[has_tokens]
        for position, (document, tokens) in enumerate(zip(documents, encoded.lengths, strict=True), first):
            if tokens:
                self._end += int(tokens) + 1
                without_text = document._replace(text="")  # The texts of a whole shard would fill the memory.
                self._pending.append((position, self._end, without_text, int(tokens)))
            else:
                self._empty.append(position)
        starts = np.cumsum(lengths) - lengths
        streams = [np.insert(encoded.ids, starts, BOS_ID)]
        if len(self.prefixes) > 1:
            streams.append(np.insert(encoded.token_bytes, starts, 0))
        if len(lengths) and self._drop:
            streams = [stream[self._drop :] for stream in streams]
            self._drop = 0
        self._append(streams)

    def close(self) -> list[Path]:
        """Write what is left and the index; returns the token shards."""
        if self._filled:
            self._write_shard()
        self.no_token_left += len(self._empty)
        assemble_index(self.data, self.split, self._paths["rows"], self._paths["names"])
        return self.files(self.prefixes[0])

    def files(self, prefix: str) -> list[Path]:
        """The shards of tokens (`train`, `val`) or of byte counts (`val_bytes`) that are written."""
        return [self._shard(prefix, number) for number in range(self.shards)]

    def _append(self, streams: list[Tokens]) -> None:
        length, at = len(streams[0]), 0
        while at < length:
            count = min(length - at, self.shard_tokens - self._filled)
            for buffer, stream in zip(self._buffers, streams, strict=True):
                buffer[self._filled : self._filled + count] = stream[at : at + count]
            self._filled, at = self._filled + count, at + count
            if self._filled == self.shard_tokens:
                self._write_shard()
                self._record()

    def _write_shard(self) -> None:
        """Write the buffers as the next shard, and the rows of the documents that are whole with it."""
        end = self.shards * self.shard_tokens + self._filled
        whole = [one for one in self._pending if one[1] <= end]
        self._pending = self._pending[len(whole) :]
        if whole:
            documents = [document for _, _, document, _ in whole]
            sizes, tokens = [document.num_bytes for document in documents], [one[3] for one in whole]
            rows = make_rows((document.sha256 for document in documents), sizes, tokens)
            _append_to(self._paths["rows"], rows.tobytes())
            _append_to(self._paths["names"], b"".join(name_line(document.name) for document in documents))
            self.taken, self._complete_end = whole[-1][0] + 1, whole[-1][1]
            self._documents += len(whole)
        for prefix, buffer in zip(self.prefixes, self._buffers, strict=True):
            write_shard(self._shard(prefix, self.shards), buffer[: self._filled])
        self.shards, self._filled = self.shards + 1, 0

    def _record(self) -> None:
        """Remember the position: all shards so far are full."""
        passed = [position for position in self._empty if position < self.taken]
        self._empty = self._empty[len(passed) :]
        self.no_token_left += len(passed)
        state: dict[str, Any] = {
            "shards": self.shards,
            "documents": self._documents,
            "taken": self.taken,
            "offset": self.shards * self.shard_tokens - self._complete_end,
            "names_bytes": _size(self._paths["names"]),
            "no_token_left": self.no_token_left,
        }
        write_json(self._paths["json"], state)

    def _recover(self, rows_bytes: int, names_bytes: int) -> None:
        """Take away what was written after the recorded position; UserError when something before it is damaged."""
        for name, size in (("rows", rows_bytes), ("names", names_bytes)):
            path = self._paths[name]
            path.touch()
            if _size(path) < size:
                raise UserError(f"{path} is shorter than recorded; delete {self.data.parent} and prepare again.")
            os.truncate(path, size)
        for prefix in self.prefixes:
            for path in self.data.glob(f"{prefix}_[0-9]*.bin"):
                if int(path.stem.rpartition("_")[2]) >= self.shards:
                    path.unlink()
            for path in self.files(prefix):
                if shard_length(path) != self.shard_tokens:
                    raise UserError(f"{path} is not a full shard; delete {self.data.parent} and prepare again.")

    def _shard(self, prefix: str, number: int) -> Path:
        return self.data / f"{prefix}_{number:06d}.bin"


def _append_to(path: Path, data: bytes) -> None:
    """Append and wait until it is on the disk, so that a position is never recorded before what it counts."""
    with open(path, "ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _size(path: Path) -> int:
    return path.stat().st_size
