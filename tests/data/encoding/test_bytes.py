"""The denominator: bytes per token, against an independent count."""

import dataclasses

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pgolf.data.encoding.bytes import ByteTable, SurfaceWalk, character_costs, charge, check_document_bytes
from pgolf.errors import UserError

BOS, UNK, BYTE, SPACE, WORD, INDENT, INNER, SNOW = range(8)
PIECES = [
    ("<s>", "boundary"),
    ("<unk>", "boundary"),
    ("<0x0A>", "byte"),
    ("▁", "normal"),
    ("▁model", "normal"),
    ("▁▁▁", "normal"),
    ("a▁b", "normal"),
    ("☃", "normal"),
]


@pytest.mark.parametrize(
    ("previous", "current", "with_dummy_prefix", "without"),
    [
        (WORD, WORD, 6, 6),  # " model" after a word
        (BOS, WORD, 5, 6),  # at the start: an invented space, or a real one
        (UNK, WORD, 5, 6),
        (WORD, SPACE, 1, 1),
        (BOS, SPACE, 0, 1),
        (WORD, INDENT, 3, 3),  # three spaces, not 1 + 2 * 3
        (BOS, INDENT, 2, 3),
        (WORD, INNER, 3, 3),
        (WORD, SNOW, 3, 3),
        (BOS, SNOW, 3, 3),
        (WORD, BYTE, 1, 1),
        (BOS, BYTE, 1, 1),
        (WORD, BOS, 0, 0),
        (WORD, UNK, 0, 0),
    ],
)
def test_bytes_of_one_token(previous, current, with_dummy_prefix, without):
    for dummy_prefix, expected in ((True, with_dummy_prefix), (False, without)):
        table = ByteTable.from_pieces(PIECES, dummy_prefix)
        counted = table.token_bytes(np.array([previous]), np.array([current]))
        assert counted.tolist() == [expected]
        assert counted.dtype == np.int32


def test_a_vocabulary_without_a_lone_space_is_refused():
    with pytest.raises(UserError, match=r"no piece for a lone space"):
        ByteTable.from_pieces([piece for piece in PIECES if piece[0] != "▁"], dummy_prefix=False)


def test_a_lone_space_that_is_only_a_control_id_is_refused():
    pieces = [(s, "boundary" if s == "▁" else kind) for s, kind in PIECES]
    with pytest.raises(UserError, match=r"no piece for a lone space"):
        ByteTable.from_pieces(pieces, dummy_prefix=False)


TEXTS = st.text(
    st.one_of(
        st.sampled_from(" \t\n\r\0\x01\x7f\u00a0\u2003\u200b\ufeffaeiou0123.,é☃😀"),
        st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"),
    ),
    min_size=1,
    max_size=200,
)


@settings(deadline=None)
@given(text=TEXTS)
@example(text=" leading and trailing ")
@example(text="\n\n        indented\n\n")
@example(text="<s></s><unk><0x0A>")
@example(text="\0")
def test_bytes_of_any_document_are_its_utf8_length(text, tokenizer):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    counted = ByteTable.of(tokenizer).stream_bytes(np.array([1, *ids]))
    assert counted[0] == 0
    assert int(counted.sum()) == len(text.encode())


@settings(deadline=None)
@given(text=TEXTS)
def test_both_paths_agree_token_by_token_outside_characters_in_byte_pieces(text, tokenizer):
    """The table charges each byte piece one byte, the surface rule the whole character to the last of them."""
    ids = np.array(tokenizer.encode(text))
    by_table = ByteTable.of(tokenizer).stream_bytes(np.array([1, *ids]))[1:]
    by_surface = SurfaceWalk(tokenizer.piece_bytes).count(ids)
    in_bytes = np.isin(ids, tokenizer.byte_ids)
    assert (by_table == by_surface)[~in_bytes].all()
    assert by_table.sum() == by_surface.sum() == len(text.encode())


def test_costs_of_characters():
    assert character_costs("aé☃😀").tolist() == [1, 2, 3, 4]
    operators = ("<", "+", "!")
    assert character_costs("<a+b!<!!<c", operators).tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0, 1]
    with pytest.raises(ValueError, match="character 1 is a lone surrogate"):
        character_costs("a\ud800")


def test_charging_by_surfaces():
    """Form "ab c" of the text " ab\t\tc " with pieces "a", "b ", "c": the ends of the text are in no surface."""
    sizes, costs = np.array([1, 2, 1]), np.ones(7, np.int64)
    offsets = np.array([1, 2, 3, 5, 6])
    ids = np.array([0, 1, 2])
    assert charge(ids, sizes, costs, "ab c", offsets).tolist() == [2, 3, 2]
    assert charge(ids, sizes, costs, "ab c", offsets, whole=False).tolist() == [1, 3, 1]
    assert charge(ids[:0], sizes, costs[:0], "").tolist() == []


def test_both_disagreements_name_the_document_and_the_numbers():
    check_document_bytes("a.txt", 10, 10, 10)
    with pytest.raises(UserError, match=r"'a.txt': its tokens decode to 9 bytes.* has 10;"):
        check_document_bytes("a.txt", 10, 9, 10)
    with pytest.raises(UserError, match=r"'a.txt': its tokens are charged 12 bytes.* has 10;"):
        check_document_bytes("a.txt", 10, 10, 12)


def test_the_leading_space_counted_twice_is_noticed(tokenizer):
    """The commonest published mistake: the table includes the space and the rule adds it again."""
    table = ByteTable.of(tokenizer)
    twice = dataclasses.replace(table, base_bytes=table.base_bytes + table.leading_space.astype(np.int32))
    text = "the model reads every token once"
    stream = np.array([1, *tokenizer.encode(text)])
    with pytest.raises(UserError, match="are charged"):
        check_document_bytes("x", len(text), len(text), int(twice.stream_bytes(stream).sum()))
