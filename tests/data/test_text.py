"""The user's own files."""

import json

import pytest

from pgolf.console import Silent
from pgolf.data.text import TextFiles
from pgolf.errors import UserError


def gather(*paths):
    return TextFiles(paths=[str(path) for path in paths]).gather(Silent())


def test_text_files_folders_and_json_lines(tmp_path):
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "b.txt").write_bytes(b"second\r\n")
    (folder / "inner" / "a.txt").write_text("third")
    (folder / "ignored.md").write_text("not read")
    lines = tmp_path / "more.jsonl"
    lines.write_text('{"text": "fourth \\u2603"}\n\n{"text": "fifth", "id": 3}\n')
    documents = gather(folder, lines).documents
    assert [(d.name, d.text) for d in documents] == [
        ("b.txt", "second\r\n"),
        ("inner/a.txt", "third"),
        ("more.jsonl:1", "fourth ☃"),
        ("more.jsonl:3", "fifth"),
    ]
    assert documents[0].num_bytes == 8


def test_line_breaks_inside_json_strings_do_not_cut_lines(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"text": "a\u2028b\x85c\r\nd"}, ensure_ascii=False) + "\n", "utf-8")
    assert [d.text for d in gather(path).documents] == ["a\u2028b\x85c\r\nd"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{"text": "fine"}\n{"text": ', r"x\.jsonl, line 2 is not JSON"),
        (b'{"text": "fine"}\n\n{"txt": "a"}\n', r"x\.jsonl, line 3 is not a document"),
        (b'["text"]\n', r"x\.jsonl, line 1 is not a document"),
        (b'{"text": 3}\n', r"x\.jsonl, line 1 is not a document"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', r"x\.jsonl, line 2: the byte at offset 24 is not"),
    ],
)
def test_malformed_lines_are_named(content, sentence, tmp_path):
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        gather(tmp_path / "x.jsonl")


def test_paths_that_give_nothing_are_named(tmp_path):
    (tmp_path / "x.md").write_text("text")
    with pytest.raises(UserError, match=r"data\.source\.paths: .*missing\.txt does not exist"):
        gather(tmp_path / "missing.txt")
    with pytest.raises(UserError, match=r"neither a \.txt nor a \.jsonl"):
        gather(tmp_path / "x.md")
    with pytest.raises(UserError, match=r"holds no \.txt or \.jsonl"):
        gather(tmp_path)
    with pytest.raises(ValueError, match="paths is empty"):
        TextFiles(paths=[])


def test_identity_follows_the_content_and_not_the_place(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("same")
    one, two = (TextFiles(paths=[str(tmp_path / folder)]) for folder in ("one", "two"))
    before = one.identity()
    assert before == two.identity()
    (tmp_path / "one" / "a.txt").write_text("other")
    assert one.identity() != before
