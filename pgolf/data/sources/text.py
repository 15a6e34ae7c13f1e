"""The user's own documents: files and folders of text, read as a stream."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pgolf.console import Console, Task
from pgolf.data.sources.documents import Document, sift
from pgolf.data.sources.fingerprints import FileHashes, file_state
from pgolf.data.sources.readers import SUFFIXES, format_of, read_texts
from pgolf.errors import UserError


class TextFiles:
    """Documents from files and folders, in the order of the paths, the files of a folder sorted.

    Args:
        paths: .jsonl files (each line an object whose "text" is a document; other keys are not read), .txt files (one
            document each), both also compressed as .gz or .zst, .parquet files (a column "text"), and folders that
            are searched for them.
        min_characters: shorter documents are left out.
    """

    def __init__(self, *, paths: list[str], min_characters: int = 1):
        if not paths:
            raise ValueError("paths is empty: name files or folders, as in data.source.paths=[notes.jsonl]")
        self.paths = list(paths)
        self.min_characters = min_characters
        self._states: dict[Path, list[int]] = {}

    def identity(self, hashes: FileHashes) -> dict[str, Any]:
        """Name and hash of every file: a changed file makes a new data set."""
        files = self._files()
        self._states = {path: file_state(path) for _, path in files}
        return {
            "kind": "text",
            "files": [[label, hashes.sha256(path)] for label, path in files],
            "min_characters": self.min_characters,
        }

    def documents(self, console: Console, left_out: Counter[str]) -> Iterator[Document]:
        """One document after another; UserError names the file and line of what is damaged, not UTF-8 or no document,
        and a file that was changed after its hash was taken."""
        return sift(self._texts(console), self.min_characters, left_out)

    def _texts(self, console: Console) -> Iterator[tuple[str, str]]:
        files = self._files()
        sizes = [path.stat().st_size for _, path in files]
        before = 0
        with console.task("Reading text files (MB)", sum(sizes) // 10**6) as task:
            for (label, path), size in zip(files, sizes, strict=True):
                yield from read_texts(path, label, partial(_advance, task, before))
                if self._states.get(path) not in (None, file_state(path)):
                    raise UserError(f"{path} was changed while it was read; give the command again.")
                before += size
                task.update(before // 10**6)

    def _files(self) -> list[tuple[str, Path]]:
        """(label, path) of every file; labels do not depend on where the folder lies."""
        found: list[tuple[str, Path]] = []
        kinds = ", ".join(SUFFIXES)
        for name in self.paths:
            path = Path(name).expanduser()
            if path.is_dir():
                inside = [p for p in path.rglob("*") if format_of(p)[0] is not None and p.is_file()]
                if not inside:
                    raise UserError(f"data.source.paths: the folder {name} holds no file that can be read ({kinds}).")
                labels = [(str(p.relative_to(path)), p) for p in inside]
                found.extend(sorted(labels))
            elif not path.is_file():
                raise UserError(f"data.source.paths: {name} does not exist (looked for {path.absolute()}).")
            elif format_of(path)[0] is None:
                raise UserError(f"data.source.paths: {name} is none of the files that can be read ({kinds}).")
            else:
                found.append((path.name, path))
        return found


def _advance(task: Task, before: int, at: int) -> None:
    task.update((before + at) // 10**6)
