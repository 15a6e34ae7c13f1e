"""The embedded corpus, on a made-up package (fast) and on parts of the real installation."""

import sys
import sysconfig
from collections import Counter
from pathlib import Path

import pytest

from pgolf.console import Silent
from pgolf.data.sources.docstrings import module_texts, topic_texts
from pgolf.data.sources.fingerprints import FileHashes
from pgolf.data.sources.pydocs import PythonDocs
from pgolf.errors import UserError

MODULE = '''
"""What the module does."""
import os

class Thing(Base, metaclass=M):
    """A thing."""

    def act(self, a: int, *, b="x") -> str:
        """Act\\ton it.

            Indented.
        Not.
        """
        def inner():
            """Inside."""

    def bare(self): ...

if os.name:
    async def later():
        """Conditional."""

Thing.bare.__doc__ = """Added """ + "by assignment."
'''


def test_a_module_is_its_docstrings_in_order():
    [(name, text)] = module_texts("pack.mod", MODULE.encode())
    assert name == "pack.mod"
    assert text.split("\n\n") == [
        "pack.mod",
        "What the module does.",
        "class pack.mod.Thing(Base)",
        "A thing.",
        "pack.mod.Thing.act(self, a: int, *, b='x') -> str",
        "Act     on it.",
        "    Indented.\nNot.",
        "pack.mod.Thing.act.inner()",
        "Inside.",
        "pack.mod.later()",
        "Conditional.",
        "pack.mod.Thing.bare",
        "Added by assignment.\n",
    ]


ATTACHED = '''
add_docstr(torch.abs, r"""abs(input) -> Tensor

Args:
    {input}
""".format(**common_args) + r"""
Example::
""")
add_docstr_all("chunk", """See :func:`torch.chunk`""")
add_newdoc("numpy.core", "array", """array(object)""")
add_newdoc("numpy.core", "ndarray", ("T", """Transposed."""))
add_newdoc("numpy.core", "ndarray", [("dot", """Product."""), ("sum", f"""Sum {over}.""")])
unrelated(torch.abs, """not documentation""")
'''


def test_documentation_added_by_calls_is_one_document_an_object():
    texts = dict(module_texts("m", ATTACHED.encode()))
    assert texts == {
        "m: torch.abs": "torch.abs\n\nabs(input) -> Tensor\n\nArgs:\n    {input}\n\nExample::\n",
        "m: chunk": "chunk\n\nSee :func:`torch.chunk`\n",
        "m: numpy.core.array": "numpy.core.array\n\narray(object)\n",
        "m: numpy.core.ndarray": "numpy.core.ndarray\n\nT\n\nTransposed.\n\ndot\n\nProduct.\n\nsum\n\nSum {over}.\n",
    }


def test_sources_of_another_python_and_without_docstrings():
    assert module_texts("m", b"x = 1\n") == []
    with pytest.raises(SyntaxError):
        module_texts("m", b'"""doc"""\ndef (')


def test_topics_of_the_language_reference():
    path = Path(sysconfig.get_path("stdlib"), "pydoc_data", "topics.py")
    topics = dict(topic_texts(path.read_bytes()))
    assert len(topics) > 60
    assert "assert" in topics["pydoc_data.topics: assert"]
    assert topic_texts(b"other = {}") == []


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package that would fail if anything imported it."""
    files = {
        "madeup/__init__.py": '"""The made-up package."""\nraise RuntimeError("imported")\n',
        "madeup/b.py": '"""Module b."""\n',
        "madeup/inner/a.py": '"""Module a of inner."""\n',
        "madeup/short.py": '"""S"""\n',
        "madeup/marked.py": '"""Has a ▁ mark."""\n',
        "madeup/broken.py": '"""Newer syntax"""\ndef (\n',
        "madeup/tests/test_b.py": '"""A test, left out."""\n',
        "madeup/_vendor/x.py": '"""Vendored, left out."""\n',
        "madeup-1.5.dist-info/METADATA": "Metadata-Version: 2.1\nName: madeup\nVersion: 1.5\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return "madeup"


def test_a_package_is_read_without_importing_it(package):
    source = PythonDocs(packages=[package], standard_library=False, min_characters=18)
    left_out: Counter[str] = Counter()
    gathered = list(source.documents(Silent(), left_out))
    assert [document.name for document in gathered] == ["madeup", "madeup.b", "madeup.inner.a", "madeup.marked"]
    assert left_out == {"too_short": 1, "unreadable_files": 1}
    assert package not in sys.modules
    assert gathered == list(source.documents(Silent(), Counter()))


def test_identity_names_the_versions(package):
    alone = PythonDocs(packages=[package], standard_library=False).identity(FileHashes())
    assert alone["packages"] == {"madeup": "1.5"} and alone["python"] is None
    whole = PythonDocs(packages=["torch", "numpy", "torch"]).identity(FileHashes())
    assert list(whole["packages"]) == ["numpy", "torch"]
    assert whole["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")


def test_a_package_that_is_not_installed_is_a_sentence():
    source = PythonDocs(packages=["no_such_package"])
    with pytest.raises(UserError, match=r"data\.source\.packages names 'no_such_package'"):
        source.identity(FileHashes())
    with pytest.raises(ValueError, match="no document is left"):
        PythonDocs(packages=[], standard_library=False)
