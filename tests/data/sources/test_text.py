"""The user's own files: every format, and what is said about damage."""

import gzip
import io
import json
import random
import sys
from collections import Counter

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.console import Silent
from pgolf.data.sources.fingerprints import FileHashes
from pgolf.data.sources.readers import MAX_DOCUMENT_BYTES, SUFFIXES, read_texts
from pgolf.data.sources.text import TextFiles
from pgolf.errors import UserError

from ..corpus import small_documents


def gather(*paths, left_out=None):
    source = TextFiles(paths=[str(path) for path in paths])
    return list(source.documents(Silent(), Counter() if left_out is None else left_out))


def zstd(data: bytes, checksum: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=checksum).compress(data)


PACK = {"": lambda data: data, ".gz": lambda data: gzip.compress(data, mtime=0), ".zst": zstd}


def test_text_files_folders_and_json_lines(tmp_path):
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "b.txt").write_bytes(b"second\r\n")
    (folder / "inner" / "a.txt.gz").write_bytes(gzip.compress(b"third"))
    (folder / "ignored.md").write_text("not read")
    (folder / "ignored.gz").write_text("not read")
    lines = tmp_path / "more.jsonl"
    lines.write_text('{"text": "fourth \\u2603"}\n\n{"text": "fifth", "id": 3}\n')
    documents = gather(folder, lines)
    assert [(d.name, d.text) for d in documents] == [
        ("b.txt", "second\r\n"),
        ("inner/a.txt.gz", "third"),
        ("more.jsonl:1", "fourth ☃"),
        ("more.jsonl:3", "fifth"),
    ]
    assert documents[0].num_bytes == 8


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_the_same_documents_again_and_again(suffix, tmp_path):
    texts = [*small_documents(300), "a\u2028b\x85c\r\nd", "\ufeffx"]
    path = tmp_path / f"x{suffix}"
    if suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"id": range(len(texts)), "text": texts}), path, row_group_size=70)
    elif suffix.startswith(".jsonl"):
        lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        path.write_bytes(PACK[suffix.removeprefix(".jsonl")](lines.encode()))
    else:
        texts = ["\n".join(texts)]
        path.write_bytes(PACK[suffix.removeprefix(".txt")](texts[0].encode()))
    source = TextFiles(paths=[str(path)])
    for _ in range(2):
        assert [d.text for d in source.documents(Silent(), Counter())] == texts


def test_several_compressed_members_and_a_skippable_frame_are_read_on(tmp_path):
    lines = [json.dumps({"text": text}).encode() + b"\n" for text in ("one", "two")]
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(map(gzip.compress, lines)))
    skippable = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
    (tmp_path / "b.jsonl.zst").write_bytes(skippable.join(map(zstd, lines)))
    assert [d.text for d in gather(tmp_path)] == ["one", "two"] * 2


def test_a_byte_order_mark_before_json_is_no_text(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\n')
    assert [d.text for d in gather(tmp_path / "x.jsonl")] == ["a"]


def test_lone_surrogates_are_counted_as_left_out(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "\\ud800 half"}\n{"text": "\\ud83d\\ude00"}\n{"text": ""}\n')
    left_out: Counter[str] = Counter()
    assert [d.text for d in gather(tmp_path / "x.jsonl", left_out=left_out)] == ["😀"]
    assert left_out == {"lone_surrogate": 1, "too_short": 1}


@pytest.mark.parametrize("packing", list(PACK))
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{"text": "fine"}\n{"text": ', r", line 2 is not JSON"),
        (b'{"text": "fine"}\n\n{"txt": "a"}\n', r", line 3 is not a document"),
        (b'["text"]\n', r", line 1 is not a document"),
        (b'{"text": 3}\n', r", line 1 is not a document"),
        (b'{"text": null}\n', r", line 1 is not a document"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', r", line 2: the byte at offset 24 is not"),
        (b"[" * 100_000 + b"\n", r", line 1 is not JSON"),
        (b'{"text": ' + b"1" * 5000 + b"}\n", r", line 1 is not JSON"),
    ],
)
def test_malformed_lines_are_named(content, sentence, packing, tmp_path):
    path = tmp_path / f"x.jsonl{packing}"
    path.write_bytes(PACK[packing](content))
    with pytest.raises(UserError, match=rf"x\.jsonl{packing}{sentence}"):
        gather(path)


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst", ".txt.gz", ".txt.zst"])
def test_a_truncated_compressed_file_is_named_with_its_line(suffix, tmp_path):
    random_text = random.Random(1).randbytes(20_000).hex()
    data = "".join(json.dumps({"text": random_text[at : at + 400]}) + "\n" for at in range(0, 40_000, 400))
    path = tmp_path / f"x{suffix}"
    whole = PACK[path.suffix](data.encode())
    for cut in (len(whole) - 1, len(whole) // 2, 3):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=rf"x{suffix}, line \d+: the compressed data is damaged or truncated"):
            gather(path)


def test_a_line_without_an_end_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("pgolf.data.sources.readers.MAX_DOCUMENT_BYTES", 1000)
    assert MAX_DOCUMENT_BYTES == 2**30
    for name in ("x.jsonl", "x.txt"):
        (tmp_path / name).write_bytes(b" " * 5000)
        with pytest.raises(UserError, match=rf"{name}, line 1 goes on for more than 1000 bytes"):
            gather(tmp_path / name)


LINES = st.lists(st.text(max_size=12), min_size=1, max_size=6)
CHANGES = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=3)


def read_or_refusal(path) -> list[str] | str:
    try:
        return [text for _, text in read_texts(path, "x", lambda at: None)]
    except UserError as error:
        return str(error)


def expected(data: bytes) -> list[str] | None:
    """What a plain reading of .jsonl bytes gives, None when one line is no document."""
    try:
        lines = [json.loads(line) for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.decode().strip()]
        texts = [line["text"] for line in lines]
    except (ValueError, TypeError, KeyError, UnicodeDecodeError):
        return None
    return texts if all(isinstance(text, str) for text in texts) else None


@pytest.mark.parametrize("packing", list(PACK))
@settings(deadline=None, max_examples=150)
@given(texts=LINES, changes=CHANGES, cut=st.none() | st.integers(0, 10_000))
def test_changed_bytes_give_a_sentence_or_exactly_what_they_say(packing, texts, changes, cut, tmp_path_factory):
    """No traceback, and no other text than the (checked) bytes hold."""
    plain = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode(errors="replace")
    data = bytearray(PACK[packing](plain))
    for at, value in changes:
        data[at % len(data)] = value
    data = data[: None if cut is None else cut % (len(data) + 1)]
    path = tmp_path_factory.getbasetemp() / f"fuzz.jsonl{packing}"
    path.write_bytes(data)
    found = read_or_refusal(path)
    if isinstance(found, str):
        assert "fuzz.jsonl" in found
    elif not packing:
        assert found == expected(bytes(data))
    elif packing == ".gz":  # Its checksum covers the text: a change that is not found is in the header.
        assert found in (expected(plain), []) and (found or not data)
    else:
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(bytes(data)), read_across_frames=True) as reader:
            assert found == expected(reader.read())


@settings(deadline=None, max_examples=60)
@given(changes=CHANGES, cut=st.none() | st.integers(0, 10_000))
def test_changed_parquet_bytes_give_a_sentence_or_documents(changes, cut, tmp_path_factory):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    sink = io.BytesIO()
    texts = small_documents(5)
    parquet.write_table(pyarrow.table({"text": texts}), sink, write_page_checksum=True)
    data = bytearray(sink.getvalue())
    for at, value in changes:
        data[at % len(data)] = value
    path = tmp_path_factory.getbasetemp() / "fuzz.parquet"
    path.write_bytes(data[: None if cut is None else cut % (len(data) + 1)])
    found = read_or_refusal(path)
    assert "fuzz.parquet" in found if isinstance(found, str) else found == texts


def test_parquet_faults_are_named(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"body": ["a"]}), path)
    with pytest.raises(UserError, match=r"x\.parquet has no column 'text'; its columns are body"):
        gather(path)
    parquet.write_table(pyarrow.table({"text": ["a", None]}), path)
    with pytest.raises(UserError, match=r"x\.parquet, row 2 is not a document"):
        gather(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"x\.parquet, after row 0: the file is damaged"):
        gather(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"install `pgolf\[parquet\]`"):
        gather(path)


def test_paths_that_give_nothing_are_named(tmp_path):
    (tmp_path / "x.md").write_text("text")
    with pytest.raises(UserError, match=r"data\.source\.paths: .*missing\.txt does not exist"):
        gather(tmp_path / "missing.txt")
    with pytest.raises(UserError, match=r"none of the files that can be read \(\.jsonl, \.jsonl\.gz"):
        gather(tmp_path / "x.md")
    with pytest.raises(UserError, match=r"holds no file that can be read"):
        gather(tmp_path)
    with pytest.raises(ValueError, match="paths is empty"):
        TextFiles(paths=[])


def test_identity_follows_the_content_and_not_the_place(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("same")
    one, two = (TextFiles(paths=[str(tmp_path / folder)]) for folder in ("one", "two"))
    before = one.identity(FileHashes())
    assert before == two.identity(FileHashes())
    (tmp_path / "one" / "a.txt").write_text("other")
    assert one.identity(FileHashes()) != before


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a"}\n')
    source = TextFiles(paths=[str(path)])
    source.identity(FileHashes())
    documents = source.documents(Silent(), Counter())
    next(documents)
    path.write_text('{"text": "a"}\n{"text": "b"}\n')
    with pytest.raises(UserError, match=r"x\.jsonl was changed while it was read"):
        list(documents)


def test_hashes_of_big_files_are_kept_until_the_file_changes(tmp_path, monkeypatch):
    monkeypatch.setattr("pgolf.data.sources.fingerprints.BIG_BYTES", 10)
    big, kept = tmp_path / "big.txt", tmp_path / "hashes.json"
    big.write_text("a big file")
    first = FileHashes(kept).sha256(big)
    monkeypatch.setattr(FileHashes, "_hash", lambda *arguments: pytest.fail("hashed again"))
    assert FileHashes(kept).sha256(big) == first
    monkeypatch.undo()
    monkeypatch.setattr("pgolf.data.sources.fingerprints.BIG_BYTES", 10)
    big.write_text("a changed file")
    assert FileHashes(kept).sha256(big) != first
    kept.write_text("{damaged")
    assert FileHashes(kept).sha256(big) == FileHashes().sha256(big)
    with pytest.raises(UserError, match=r"cannot read .*none\.txt"):
        FileHashes().sha256(tmp_path / "none.txt")
