"""Bytes of ids that stand alone: those that evaluation charges in the middle of a text."""

import numpy as np
import pytest

from pgolf.data.encoding.alone import bytes_alone
from pgolf.data.encoding.byte_tokenizer import Bytes
from pgolf.data.encoding.bytes import ByteTable
from pgolf.data.encoding.frontend import train_front_end
from pgolf.data.encoding.tokenizer import SentencePieceTokenizer
from pgolf.data.encoding.transform import CaseOps
from pgolf.data.validation import UNK_ID

from ..corpus import small_documents

TEXTS = small_documents(40)


@pytest.mark.parametrize("normalization", ["lossless", "published"])
def test_they_are_those_of_the_published_table(normalization):
    tokenizer = SentencePieceTokenizer(vocab_size=400, normalization=normalization)
    front_end = train_front_end(None, tokenizer, TEXTS)
    counts, spaces = bytes_alone(front_end)
    table = ByteTable.of(front_end.tokenizer)
    word = int(np.flatnonzero(table.base_bytes > 1)[0])
    expected = table.token_bytes(np.full(400, word), np.arange(400))
    pieces = front_end.tokenizer.piece_bytes
    whole = np.array([len(piece) != 1 or piece[0] < 0x80 for piece in pieces])  # no part of a character
    whole[UNK_ID] = False  # it never occurs, and is charged its surface here
    assert np.array_equal(np.array(counts)[whole], expected[whole])
    assert spaces == table.leading_space.tolist()


def test_they_sum_to_the_bytes_of_a_text_but_for_parts_of_characters_and_escapes():
    front_end = train_front_end(CaseOps(), SentencePieceTokenizer(vocab_size=400), TEXTS)
    counts, _ = bytes_alone(front_end)
    ids = front_end.encode(TEXTS[0])
    charged = front_end.encode_documents([TEXTS[0]]).token_bytes
    alone = np.array(counts)[ids]
    differ = np.flatnonzero(alone != charged)
    assert len(differ) < 0.1 * len(ids) and all(alone[at] == 0 for at in differ)
    assert {
        counts[i] for i in range(400) if front_end.tokenizer.piece_bytes[i] in [o.encode() for o in front_end.operators]
    } == {0}


def test_a_byte_is_a_byte():
    counts, spaces = bytes_alone(train_front_end(None, Bytes(), TEXTS))
    assert counts == [0] * 4 + [1] * 256 and not any(spaces)
