"""The code half of the byte budget: a zip archive of the modules that load and score an artifact.

The archive is importable (put it on sys.path). It holds the modules that the entry modules reach
through their import statements, found by reading the source and never by running it, as source
without comments and docstrings: what the published scripts do with a minifier, but names stay. Its
size on disk is the code size.
"""

import ast
import inspect
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pgolf
from pgolf.errors import UserError
from pgolf.files import atomic_open
from pgolf.quant import rans, rans_side, rans_tables
from pgolf.quant.coders import CODERS
from pgolf.quant.kept import kept

ENTRIES = ("pgolf.model", "pgolf.quant.container", "pgolf.score", "pgolf.ttt")
"""What loads and scores by default; a package stands for all its modules, for any may be named."""
RUN_ENTRIES = (
    "pgolf.data.dataset",
    "pgolf.data.validation",
    "pgolf.quant.calibration",
    "pgolf.quant.container",
    "pgolf.quant.packer",
    "pgolf.score.scorer",
    "pgolf.ttt.fixed",
)
"""What every run needs beside the modules that its configuration names: it trains, compresses, loads and scores."""

_TIMESTAMP = (1980, 1, 1, 0, 0, 0)


def write_code_archive(
    path: Path, *, entries: Sequence[str] = ENTRIES, root: Path | None = None, cache_root: Path | None = None
) -> int:
    """Write the archive atomically; return its size. The same sources give the same bytes.

    Args:
        path: the zip file to write.
        entries: modules, or packages that stand for all their modules. A run may pass the modules
            its configuration names, so that unused techniques do not count.
        root: directory that holds the package `pgolf`; None is the running one.
        cache_root: below it modules are kept as they are after stripping, which takes seconds.

    Raises UserError when an entry does not exist.
    """
    root = root or package_root()
    sources = reachable_modules(root, entries)
    maker = "\n".join([str(sys.version_info[:3]), *(inspect.getsource(one) for one in (strip_source, _is_bare_string))])
    folder = cache_root and cache_root / "stripped"
    path = Path(path)
    with (
        atomic_open(path) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
    ):
        for source in sorted(sources.values()):
            entry = zipfile.ZipInfo(source.relative_to(root).as_posix(), _TIMESTAMP)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3
            entry.external_attr = 0o644 << 16
            stripped = kept(folder, maker, strip_source, source.read_text("utf-8"))
            archive.writestr(entry, stripped, compresslevel=9)
    return path.stat().st_size


def decoder_bytes(coder: str) -> int:
    """What a coder adds to the code: the source of all that its decoding needs, stripped and compressed, in bytes.

    Libraries and programs that must be installed anyway are not in it; names stay as long as they are.
    """
    decode = CODERS[coder].decode
    functions = [decode, *_called(decode)]
    source = "\n".join(inspect.getsource(function) for function in functions)
    if CODERS[coder].matrices:
        source += "\n" + "\n".join(map(inspect.getsource, (rans_tables, rans_side, rans)))
    return len(zlib.compress(strip_source(source).encode(), 9))


def _called(function: Callable[..., object]) -> list[Callable[..., object]]:
    """The functions of its module that a function calls, directly or not, in order of first use."""
    module, found, waiting = inspect.getmodule(function), dict[str, Callable[..., object]](), [function]
    while waiting:
        for name in waiting.pop().__code__.co_names:
            value = getattr(module, name, None)
            if inspect.isfunction(value) and value.__module__ == function.__module__ and name not in found:
                found[name] = value
                waiting.append(value)
    return list(found.values())


def package_root() -> Path:
    """The directory that holds the running package."""
    return Path(pgolf.__file__).parent.parent


def modules_of(node: Any) -> list[str]:
    """The modules that a configuration names: those of every `_target_` in a plain value, sorted."""
    found: set[str] = set()
    if isinstance(node, dict):
        found.update(module for child in node.values() for module in modules_of(child))
        target = node.get("_target_")
        if isinstance(target, str) and target.startswith("pgolf."):
            names = target.split(".")
            modules = (".".join(names[:length]) for length in range(len(names) - 1, 0, -1))
            found.add(next(module for module in modules if _source_of(package_root(), module)))
    elif isinstance(node, list):
        found.update(module for child in node for module in modules_of(child))
    return sorted(found)


def reachable_modules(root: Path, entries: Sequence[str]) -> dict[str, Path]:
    """Module name -> source file of all below `root` that the entries import, directly or not."""
    found: dict[str, Path] = {}
    waiting = [module for entry in entries for module in _expand(root, entry)]
    while waiting:
        module = waiting.pop()
        source = _source_of(root, module)
        if source is None or module in found:
            continue
        found[module] = source
        if "." in module:
            waiting.append(module.rpartition(".")[0])
        waiting.extend(_imports(source.read_text("utf-8"), module, source.name == "__init__.py"))
    return found


def _source_of(root: Path, module: str) -> Path | None:
    """The file of a module of pgolf; None for other packages and names that are no module."""
    if module.split(".")[0] != "pgolf":
        return None
    base = root.joinpath(*module.split("."))
    for candidate in (base / "__init__.py", base.with_suffix(".py")):
        if candidate.is_file():
            return candidate
    return None


def _expand(root: Path, entry: str) -> list[str]:
    """A module itself; a package with all the modules below it."""
    source = _source_of(root, entry)
    if source is None:
        raise UserError(f"{entry} has no source file below {root}: pgolf must run from plain files.")
    if source.name != "__init__.py":
        return [entry]
    files = (path.relative_to(root).with_suffix("") for path in source.parent.rglob("*.py"))
    return [".".join(path.parts).removesuffix(".__init__") for path in files]


@cache
def _imports(source: str, module: str, is_package: bool) -> list[str]:
    """Every name that could be a module in the import statements of a source text, also inside functions.

    Statements below `if TYPE_CHECKING:` never run and do not count.
    """
    package = module.split(".") if is_package else module.split(".")[:-1]
    tree = ast.parse(source, filename=module)
    names: list[str] = []
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.expr):
            continue  # holds no statement, and is most of the tree
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            names.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            anchor = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*anchor, *([node.module] if node.module else [])])
            names.append(base)
            names.extend(f"{base}.{alias.name}" for alias in node.names)
        waiting.extend(ast.iter_child_nodes(node))
    return names


def strip_source(source: str) -> str:
    """The same program without comments, docstrings and other bare strings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        body = [statement for statement in node.body if not _is_bare_string(statement)]
        node.body = body or ([] if isinstance(node, ast.Module) else [ast.Pass()])
    return ast.unparse(tree) + "\n"


def _is_bare_string(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
