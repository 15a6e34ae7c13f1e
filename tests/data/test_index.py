"""The document index."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgolf.data.index import (
    ROW,
    DocumentIndex,
    assemble_index,
    index_name,
    make_rows,
    name_line,
    names_name,
    write_index,
)
from pgolf.errors import UserError

from .corpus import ON_DISK

NAMES = st.lists(st.text() | st.just("a\nb\udc80"), min_size=1, max_size=8)


def rows_of(names):
    digests = [hashlib.sha256(str(at).encode()).digest() for at in range(len(names))]
    return make_rows(digests, np.arange(len(names)) + 2**33, np.arange(len(names)) + 1)


@ON_DISK
@given(names=NAMES)
def test_both_ways_of_writing_give_the_same_files_and_the_same_rows(names, tmp_path_factory):
    whole, parts = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("parts")
    rows = rows_of(names)
    write_index(whole, "val", rows, names)
    (parts / "rows").write_bytes(rows.tobytes())
    (parts / "names").write_bytes(b"".join(map(name_line, names)))
    assemble_index(parts, "val", parts / "rows", parts / "names")
    for name in (index_name("val"), names_name("val")):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()
    index = DocumentIndex(whole, "val")
    assert list(index.names()) == names and index.name(len(names) - 1) == names[-1]
    assert (index.rows == rows).all() and isinstance(index.rows, np.memmap)
    assert index.starts.tolist() == [0, *np.cumsum(np.arange(len(names)) + 2).tolist()]
    assert ROW.itemsize == 48


def test_damage_is_a_sentence(tmp_path):
    write_index(tmp_path, "val", rows_of("ab"), "ab")
    path, names = tmp_path / index_name("val"), tmp_path / names_name("val")
    names.write_text('"a"\n')
    with pytest.raises(UserError, match="has 1 names for 2 documents"):
        list(DocumentIndex(tmp_path, "val").names())
    assert DocumentIndex(tmp_path, "val").name(1) == "number 1 of documents_val.npy"
    names.write_text('"a"\n{damaged\n')
    with pytest.raises(UserError, match=r"names_val\.jsonl, line 2 cannot be read"):
        list(DocumentIndex(tmp_path, "val").names())
    whole = path.read_bytes()
    # The last cuts a bracket out of the header, which numpy's own parser leaves as a TokenError.
    for content in (whole[:-1], whole[:20], b"", whole.replace(b"]", b"[", 1)):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"the document index .*documents_val\.npy cannot be read"):
            DocumentIndex(tmp_path, "val")
    np.save(path, np.zeros(3))
    with pytest.raises(UserError, match="is not a document index"):
        DocumentIndex(tmp_path, "val")
    with pytest.raises(UserError, match=r"documents_train\.npy cannot be read"):
        DocumentIndex(tmp_path, "train")


def test_fewer_than_no_tokens_are_a_sentence(tmp_path):
    write_index(tmp_path, "val", make_rows([b"a" * 32], [1], [-5]), "a")
    with pytest.raises(UserError, match="is damaged: a document has fewer than no tokens"):
        _ = DocumentIndex(tmp_path, "val").starts
