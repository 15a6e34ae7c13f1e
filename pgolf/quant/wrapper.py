"""The code of a run as one Python file: what the records count, made and measured instead of supposed.

Comments, docstrings, annotations and long local names go (python-minifier), the modules are joined and compressed by
LZMA, and a few lines in front import them from memory: run or import the file, and `import pgolf...` works. The bytes
are a literal in Latin-1, where five of 256 values need an escape: that takes two per cent, base 85 would take 25.
"""

import inspect
import json
import lzma
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path

from pgolf.files import atomic_open
from pgolf.quant.code import ENTRIES, package_root, reachable_modules
from pgolf.quant.kept import kept

FILTER = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}
FRONT = """\
# coding: latin-1
import importlib.abc as A,importlib.util as U,json,lzma,sys
S=json.loads(lzma.decompress('%s'.encode('latin-1'),3,None,[{'id':33,'lc':4,'lp':0,'pb':0,'dict_size':1<<26}]))
class W(A.MetaPathFinder,A.InspectLoader):
 def find_spec(s,n,*_):return U.spec_from_loader(n,s,is_package=S[n][0])if n in S else None
 def get_source(s,n):return S[n][1]
 def is_package(s,n):return S[n][0]
 def exec_module(s,m):n=m.__name__;exec(compile(S[n][1],n.replace('.','/')+'.py','exec'),m.__dict__)
sys.meta_path.insert(0,W())
"""


def write_wrapper(
    path: Path, *, entries: Sequence[str] = ENTRIES, root: Path | None = None, cache_root: Path | None = None
) -> int:
    """Write the file atomically; return its size. The same sources give the same bytes.

    `entries`, `root` and errors: as in `pgolf.quant.code.write_code_archive`. Below `cache_root` modules are kept as
    they are after minifying, which takes seconds.
    """
    sources = reachable_modules(root or package_root(), entries)
    maker = f"{version('python-minifier')} {sys.version_info[:3]} {inspect.getsource(minified)}"
    folder = cache_root and cache_root / "minified"
    modules = {
        name: (source.name == "__init__.py", kept(folder, maker, minified, source.read_text("utf-8")))
        for name, source in sorted(sources.items())
    }
    text = json.dumps(modules, separators=(",", ":"), ensure_ascii=False)
    packed = lzma.compress(text.encode(), lzma.FORMAT_RAW, filters=[FILTER])
    with atomic_open(path) as file:
        file.write((FRONT % _literal(packed)).encode("latin-1"))
    return Path(path).stat().st_size


@cache
def minified(source: str) -> str:
    """The same program in fewer bytes. Names of modules, classes, functions and arguments stay: others import them."""
    import python_minifier

    read_at_run_time = "custom_op(" in source  # operators get their schemas from annotations
    result: str = python_minifier.minify(
        source,
        remove_literal_statements=True,
        remove_annotations=not read_at_run_time,
        hoist_literals=False,
        rename_globals=False,
    )
    return result


def _literal(data: bytes) -> str:
    """What stands between single quotes for these bytes."""
    text = data.decode("latin-1").replace("\\", "\\\\").replace("'", "\\'")
    # "\0" followed by a digit would be another character
    return text.replace("\r", "\\r").replace("\n", "\\n").replace("\0", "\\x00")
