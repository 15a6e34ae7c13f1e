"""The normalisation rules read from a model, against what the library does."""

import sys

import pytest

from pgolf.data.encoding.normalizer import PROBE, Normalizer, Rules, read_rules
from pgolf.data.encoding.tokenizer import SentencePieceTokenizer, Tokenizer
from pgolf.errors import UserError

from ..corpus import small_documents


@pytest.fixture(scope="module")
def normalizer() -> Normalizer:
    """nmt_nfkc, as in the published models."""
    return Normalizer(SentencePieceTokenizer(vocab_size=400, normalization="published").train(small_documents(60)))


def test_the_rules_are_those_of_the_library_for_every_character(normalizer):
    rules = normalizer.rules
    assert len(rules.single) > 4000 and "\u0301" in rules.continuing and not any(c.isascii() for c in rules.continuing)
    wrong = []
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if 0xD800 <= code < 0xE000 or character in rules.continuing:
            continue
        form = normalizer.processor.normalize(PROBE + character + PROBE).replace("▁", " ")
        if form != PROBE + (rules.output(character) or "") + PROBE:
            wrong.append(hex(code))
    assert wrong == []


def test_spaces_and_what_is_left_as_it_is(normalizer):
    rules = normalizer.rules
    assert {" ", "\n", "\t", "\u00a0", "\u3000"} <= set(rules.spaces) and "\x01" not in rules.spaces
    assert rules.leaves("a plain 'text'.") and not rules.leaves("two  spaces") and not rules.leaves("ﬃ")
    assert rules.output("\u0301") is None and rules.output("\x01") == ""


def test_forms_of_parts_put_together_are_the_form_of_the_whole(normalizer):
    parts = ["the", " model", "\n\n every", "\u00a0ﬃ", "  ½", ","]
    forms, offsets = normalizer.inner_forms(parts)
    form, begins = normalizer.normal_form("".join(parts))
    assert "".join(forms) == form == "the model every ffi 1⁄2,"
    assert offsets.tolist() == begins.tolist()


def test_a_model_without_rules():
    assert read_rules(b"") == Rules({}, frozenset())


def test_damaged_rules_are_a_sentence(normalizer):
    charsmap = normalizer.charsmap
    for damaged in (charsmap[:2], charsmap[:40], b"\xff\xff\xff\x7f" + charsmap[4:]):
        with pytest.raises(UserError, match="normalisation rules .* are damaged"):
            read_rules(damaged)


def test_only_models_like_the_published_ones_are_taken_apart(normalizer):
    assert normalizer.separable
    proto = Tokenizer(normalizer.sibling.model).proto
    assert not Normalizer(Tokenizer(proto.SerializeToString())).separable
