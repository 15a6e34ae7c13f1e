"""The embedded corpus: the documentation that every installation carries. No download.

Files are parsed, never imported: importing half of a standard library has side effects and takes
minutes. One document is one module (its docstring, then each class and function that has one), one
object whose documentation is attached at run time (`torch.abs`), or one topic of the language
reference.
"""

import importlib.metadata
import importlib.util
import platform
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pgolf.console import Console
from pgolf.data.sources.docstrings import module_texts, topic_texts
from pgolf.data.sources.documents import Document, sift
from pgolf.data.sources.fingerprints import FileHashes
from pgolf.errors import UserError

GATHERER_VERSION = 1  # Raise it whenever the same installation would give other documents.
SKIPPED_FOLDERS = frozenset(
    [
        *("test", "tests", "idle_test", "test_module", "lib2to3"),
        *("site-packages", "dist-packages", "_vendor", "vendored_templates", "__pycache__"),
    ]
)


class PythonDocs:
    """Documentation of the standard library and of installed packages.

    Args:
        packages: installed packages whose docstrings are read, by import name.
        standard_library: read the standard library and the language reference topics too.
        min_characters: shorter documents are left out.
    """

    def __init__(self, *, packages: list[str], standard_library: bool = True, min_characters: int = 200):
        if not packages and not standard_library:
            raise ValueError("packages is empty and standard_library is false: no document is left")
        self.packages = sorted(set(packages))
        self.standard_library = standard_library
        self.min_characters = min_characters

    def identity(self, hashes: FileHashes) -> dict[str, Any]:
        """Versions of everything that is read, and of this gatherer."""
        return {
            "kind": "pydocs",
            "gatherer": GATHERER_VERSION,
            "python": platform.python_version() if self.standard_library else None,
            "packages": {package: _version(package) for package in self.packages},
            "min_characters": self.min_characters,
            # Signatures are written out by ast.unparse and tabs are cut by inspect.cleandoc.
            "parser": ".".join(platform.python_version_tuple()[:2]),
        }

    def documents(self, console: Console, left_out: Counter[str]) -> Iterator[Document]:
        """Documents sorted by name. UserError when a package is not installed."""
        return sift(self._texts(console, left_out), self.min_characters, left_out)

    def _texts(self, console: Console, left_out: Counter[str]) -> list[tuple[str, str]]:
        files = [file for root, prefix in self._roots() for file in _modules(root, prefix)]
        texts: list[tuple[str, str]] = []
        with (
            warnings.catch_warnings(),
            console.task("Reading the installed documentation", len(files)) as task,
        ):
            warnings.simplefilter("ignore")  # Invalid escapes in other people's docstrings.
            for done, (module, path) in enumerate(files, 1):
                try:
                    texts.extend(module_texts(module, path.read_bytes()))
                except (SyntaxError, ValueError, RecursionError):
                    left_out["unreadable_files"] += 1  # Templates and files written for a newer Python.
                if done % 50 == 0 or done == len(files):
                    task.update(done)
        if self.standard_library:
            topics = Path(sysconfig.get_path("stdlib"), "pydoc_data", "topics.py")
            if topics.is_file():
                texts.extend(topic_texts(topics.read_bytes()))
            else:
                console.say(f"The language reference topics are not installed ({topics}).")
        return sorted(texts)

    def _roots(self) -> Iterator[tuple[Path, str]]:
        if self.standard_library:
            yield Path(sysconfig.get_path("stdlib")), ""
        for package in self.packages:
            yield _package_root(package), package


def _version(package: str) -> str:
    """Version of the distribution that brings a package; most, but not all, share its name."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        owners = importlib.metadata.packages_distributions().get(package)
        if not owners:
            raise UserError(
                f"data.source.packages names {package!r}, which is not installed: install it or "
                "remove it from the list."
            ) from error
        return "+".join(importlib.metadata.version(owner) for owner in sorted(set(owners)))


def _package_root(package: str) -> Path:
    """The folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None or not spec.origin.endswith("__init__.py"):
        raise UserError(f"data.source.packages names {package!r}, which is not an installed package with Python files.")
    return Path(spec.origin).parent


def _modules(root: Path, prefix: str) -> list[tuple[str, Path]]:
    """(dotted name, path) of every Python file below `root`, test and vendored folders left out."""
    found: list[tuple[str, Path]] = []
    pending = [(root, prefix)]
    while pending:
        folder, dotted = pending.pop()
        for entry in sorted(folder.iterdir()):
            if entry.suffix == ".py" and entry.is_file():
                stem = "" if entry.stem == "__init__" else entry.stem
                found.append((".".join(part for part in (dotted, stem) if part), entry))
            elif entry.name not in SKIPPED_FOLDERS and entry.is_dir() and not entry.is_symlink():
                pending.append((entry, f"{dotted}.{entry.name}" if dotted else entry.name))
    return sorted(found)
