"""The user's own documents: .txt files (one document each), .jsonl files (one a line)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pgolf.console import Console
from pgolf.data.documents import Gathered, sift
from pgolf.errors import UserError
from pgolf.files import sha256_file

SUFFIXES = (".txt", ".jsonl")


class TextFiles:
    """Documents from files and folders.

    Args:
        paths: .txt and .jsonl files, and folders that are searched for them. A line of a .jsonl
            file is an object whose "text" is the document; other keys are not read.
        min_characters: shorter documents are left out.
    """

    def __init__(self, *, paths: list[str], min_characters: int = 1):
        if not paths:
            raise ValueError("paths is empty: name files or folders, as in data.source.paths=[notes.jsonl]")
        self.paths = list(paths)
        self.min_characters = min_characters

    def identity(self) -> dict[str, Any]:
        """Name and hash of every file: a changed file makes a new data set."""
        return {
            "kind": "text",
            "files": [[label, sha256_file(path)] for label, path in self._files()],
            "min_characters": self.min_characters,
        }

    def gather(self, console: Console) -> Gathered:
        """Documents in the order of the paths, the files of a folder sorted.

        UserError names the file and line of text that is not UTF-8 or of a line that is not a
        document.
        """
        files = self._files()
        texts: list[tuple[str, str]] = []
        with console.task("Reading text files", len(files)) as task:
            for done, (label, path) in enumerate(files, 1):
                text = _read_utf8(path)
                if path.suffix == ".txt":
                    texts.append((label, text))
                else:
                    texts.extend((f"{label}:{number}", t) for number, t in _lines(path, text))
                task.update(done)
        return sift(texts, self.min_characters)

    def _files(self) -> list[tuple[str, Path]]:
        """(label, path) of every file; labels do not depend on where the folder lies."""
        found: list[tuple[str, Path]] = []
        for name in self.paths:
            path = Path(name).expanduser()
            if path.is_dir():
                inside = [p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file()]
                if not inside:
                    raise UserError(f"data.source.paths: the folder {name} holds no .txt or .jsonl file.")
                labels = [(str(p.relative_to(path)), p) for p in inside]
                found.extend(sorted(labels))
            elif not path.is_file():
                raise UserError(f"data.source.paths: {name} does not exist (looked for {path.absolute()}).")
            elif path.suffix not in SUFFIXES:
                raise UserError(f"data.source.paths: {name} is neither a .txt nor a .jsonl file.")
            else:
                found.append((path.name, path))
        return found


def _read_utf8(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}, line {line}: the byte at offset {error.start} is not UTF-8; convert the file to UTF-8."
        ) from error


def _lines(path: Path, text: str) -> Iterator[tuple[int, str]]:
    """(line number, document) of a .jsonl file; blank lines are skipped."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number} is not JSON ({error}).") from error
        if not isinstance(value, dict) or not isinstance(value.get("text"), str):
            raise UserError(
                f"{path}, line {number} is not a document: an object with a string under 'text' is expected."
            )
        yield number, value["text"]
