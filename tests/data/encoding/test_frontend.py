"""The front end: exact round trips, bytes that sum to the original, and the fast path against the plain ones."""

import json
import pickle
from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pgolf.data.encoding import pretokens
from pgolf.data.encoding.byte_tokenizer import Bytes, ByteTokenizer
from pgolf.data.encoding.caseops import ESC, OPERATORS, TITLE, CaseOpsError
from pgolf.data.encoding.frontend import FrontEnd, train_front_end
from pgolf.data.encoding.sentencepiece_model import Tokenizer, lossless_model
from pgolf.data.encoding.tokenizer import (
    PublishedSentencePiece,
    SentencePieceTokenizer,
    TokenizerFile,
    train_sentencepiece,
)
from pgolf.data.encoding.transform import CaseOps
from pgolf.errors import UserError
from tests.support import GOLDEN

from .. import reference
from ..corpus import small_documents

MODEL = GOLDEN.parent / "fineweb_8192_bpe_lossless_caps_caseops_v1_reserved.model"
MODELS = {"published_model": MODEL} if MODEL.exists() else {}
TRANSFORMS = {"none": None, "caseops": CaseOps()}


def corpus() -> list[str]:
    texts = small_documents(60)
    return texts + [text.upper() for text in texts[:10]] + [text.title() for text in texts[10:20]]


@cache
def trained(kind: str) -> FrontEnd:
    """Front ends by name: kind of tokenizer, then transform."""
    tokenizer, transform = kind.split("-")
    if tokenizer == "bytes":
        return train_front_end(TRANSFORMS[transform], Bytes(), corpus())
    if tokenizer in ("lossless", "published"):
        config = SentencePieceTokenizer(vocab_size=400, normalization=tokenizer)
        return train_front_end(TRANSFORMS[transform], config, corpus())
    if tokenizer in ("unigram", "prefix", "symbols"):
        return FrontEnd(TRANSFORMS[transform], Tokenizer(unusual_model(tokenizer)))
    normalization = "lossless" if tokenizer == "file_lossless" else "published"
    return FrontEnd(TRANSFORMS[transform], TokenizerFile(path=str(MODEL), normalization=normalization).tokenizer)


def unusual_model(kind: str) -> bytes:
    """Models about whose cuts nothing is proven, so that documents are encoded whole."""
    other = {
        "unigram": {"model_type": "unigram", "normalization_rule_name": "identity", "remove_extra_whitespaces": False},
        "prefix": {"add_dummy_prefix": True},
        "symbols": {"user_defined_symbols": ["model", "▁the▁"]},
    }[kind]
    return train_sentencepiece(iter(corpus()), vocab_size=400, hard_vocab_limit=False, required_chars="▁", **other)


LOSSLESS = ["lossless-none", "lossless-caseops", "bytes-none", "bytes-caseops", "unigram-caseops"]
PUBLISHED = ["published-none", "published-caseops", "prefix-none", "symbols-caseops"]
if MODELS:
    LOSSLESS += ["file_lossless-none", "file_lossless-caseops"]
    PUBLISHED += ["file_published-none", "file_published-caseops"]

# Whatever a normaliser, a byte count or a cut has ever stumbled over.
TRICKY = (
    " \t\n\r\0\x01\x7f\x85\u00a0\u2003\u3000\u200b\ufeff\ufffd\u2581aeioubcdAEIOU0123.,-_éÉ☃😀ﬃ¨½ﷺÅ"
    "\u0301\u0308\u0300\u1100\u1161\u11a8각가ﾊﾞ" + "".join(OPERATORS)
)
TEXTS = st.text(st.one_of(st.sampled_from(TRICKY), st.characters(exclude_categories=["Cs"])), max_size=40) | st.lists(
    st.sampled_from([*TRICKY, "the ", " model", "Model ", " NASA", "  ", "every", "\n\n", "<s>", "<0x0A>", "▁the▁"]),
    max_size=15,
).map("".join)
EXAMPLES = settings(deadline=None, max_examples=300)


def together(front_end: FrontEnd, texts: list[str]) -> tuple[list[list[int]], list[list[int]]]:
    """Ids and bytes of each document by the fast path."""
    encoded = front_end.encode_documents(texts)
    assert (encoded.ids.dtype, encoded.token_bytes.dtype, encoded.lengths.dtype) == (np.uint16, np.uint16, np.int64)
    ends = np.cumsum(encoded.lengths).tolist()
    parts = [slice(end - length, end) for end, length in zip(ends, encoded.lengths.tolist(), strict=True)]
    assert len(encoded.ids) == len(encoded.token_bytes) == sum(encoded.lengths)
    return [encoded.ids[p].tolist() for p in parts], [encoded.token_bytes[p].tolist() for p in parts]


@pytest.mark.parametrize("kind", LOSSLESS)
@EXAMPLES
@given(texts=st.lists(TEXTS, max_size=4))
@example(texts=["", " ", "\n", "▁", " ▁ a▁b", ESC, "I", "\0"])
@example(texts=["Every model", " Every model ", "every\u2581model"])
def test_lossless_means_every_string_and_every_byte(kind, texts):
    front_end = trained(kind)
    assert front_end.lossless
    ids, counts = together(front_end, texts)
    assert [sum(count) for count in counts] == [len(text.encode()) for text in texts]
    assert ids == [front_end.encode(text) for text in texts]
    assert [front_end.decode(part) for part in ids] == texts
    encoded = front_end.encode_documents(texts)
    assert front_end.decode_documents(encoded.ids, encoded.lengths) == texts
    for text, part, count in zip(texts, ids, counts, strict=True):
        assert front_end.count_bytes(np.array(part, np.uint16)).tolist() == count
        assert front_end.encode_whole(text).token_bytes.tolist() == count
        if "\u2581" not in text and kind[:5] != "bytes":
            assert (part, count, count) == reference.encode(front_end, text)


@pytest.mark.parametrize("kind", PUBLISHED)
@EXAMPLES
@given(texts=st.lists(TEXTS, max_size=4))
@example(texts=["", " ", "\x01", " \u0301a", "\u00a0the\u3000", "a\u0301 \u0301", "¨", "the ¨model", "\x01 the \x01"])
@example(texts=["the\n\n  model", "the model", "\tthe model\u2581", "\u1100\u1161the"])
def test_published_ids_and_bytes(kind, texts):
    front_end = trained(kind)
    assert not front_end.lossless
    for text, part, count in zip(texts, *together(front_end, texts), strict=True):
        ids, bare, full = reference.encode(front_end, text)
        assert (part, count) == (ids, full)
        assert front_end.encode(text) == ids
        assert front_end.surface_bytes(text).tolist() == bare
        assert sum(count) == (len(text.encode()) if ids else 0)
        whole = front_end.encode_whole(text)
        assert (whole.ids.tolist(), whole.token_bytes.tolist()) == (ids, full)


@pytest.mark.parametrize("kind", [*LOSSLESS, *PUBLISHED])
def test_whole_documents_in_any_grouping(kind):
    front_end = pickle.loads(pickle.dumps(trained(kind)))
    texts = corpus()
    ids, counts = together(front_end, texts)
    for start, stop in ((0, 1), (1, 30), (30, len(texts))):
        assert together(front_end, texts[start:stop]) == (ids[start:stop], counts[start:stop])
    for text, part, count in zip(texts, ids, counts, strict=True):
        whole = front_end.encode_whole(text)
        assert (whole.ids.tolist(), whole.token_bytes.tolist()) == (part, count)
    if not front_end.lossless:
        assert any(front_end.decode(part) != text for text, part in zip(texts, ids, strict=True))


@pytest.mark.parametrize("kind", ["lossless-none", "lossless-caseops", "published-none", "published-caseops"])
def test_ordinary_documents_are_cut(kind):
    """The fast path is taken: some hundred stretches instead of documents."""
    front_end = pickle.loads(pickle.dumps(trained(kind)))
    texts = small_documents(60)
    front_end.encode_documents(texts)
    known = front_end._pretokens.numbers
    assert 10 < len(known) < 2000 and max(map(len, known)) < 30
    assert "_pretokens" not in pickle.loads(pickle.dumps(front_end)).__dict__


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(pretokens, "MOST_PRETOKENS", 20)
    front_end = pickle.loads(pickle.dumps(trained("lossless-none")))
    texts = small_documents(40)
    expected = [front_end.encode(text) for text in texts]
    largest = 0
    for text, ids in zip(texts, expected, strict=True):
        assert together(front_end, [text])[0] == [ids]
        largest = max(largest, len(front_end._pretokens.numbers))
    assert largest < 200


@settings(deadline=None, max_examples=500)
@given(st.lists(st.text(st.sampled_from("ab\0\xff\u0100"), min_size=1, max_size=18), min_size=1, max_size=30))
def test_short_keys_tell_pretokens_apart(words):
    text = "".join(words)
    ends = np.cumsum(list(map(len, words)))
    codes = np.array(list(map(ord, text)), np.uint32)
    low, high = pretokens.short_keys(codes, ends - list(map(len, words)), ends)
    usable = [len(word) <= 15 and max(word) <= "\xff" for word in words]
    assert (high != 0).tolist() == usable
    keys: dict[tuple[int, int], str] = {}
    for word, key, use in zip(words, zip(low.tolist(), high.tolist(), strict=True), usable, strict=True):
        assert not use or keys.setdefault(key, word) == word


@pytest.mark.parametrize("kind", [*LOSSLESS, *PUBLISHED])
def test_a_lone_surrogate_is_refused(kind):
    for call in (trained(kind).encode, lambda text: trained(kind).encode_documents(["fine", text])):
        with pytest.raises(ValueError, match="lone surrogate"):
            call("a\ud800b")


def test_a_count_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="would stand for 70000 bytes.*65535"):
        trained("published-none").encode_documents(["the" + " " * 70_000 + "é"])
    fits = trained("published-none").encode_documents(["the" + " " * 60_000 + "model"])
    assert fits.token_bytes.astype(int).sum() == 60_008 and fits.token_bytes.max() >= 60_000


def test_a_document_that_normalisation_empties_has_no_token():
    encoded = trained("published-caseops").encode_documents(["the", " \n\u00a0", "model"])
    assert encoded.lengths[1] == 0 and encoded.lengths[0] > 0 and encoded.lengths[2] > 0
    assert encoded.token_bytes.sum() == 8


def test_stripped_whitespace_is_charged_to_the_ends():
    front_end = trained("published-none")
    bare, full = (
        front_end.surface_bytes("\n the model \u00a0"),
        front_end.encode_whole("\n the model \u00a0").token_bytes,
    )
    assert full[0] - bare[0] == 2 and full[-1] - bare[-1] == 3
    assert (full[1:-1] == bare[1:-1]).all() and full.sum() == 14


def test_bytes_cannot_be_told_from_published_ids():
    with pytest.raises(ValueError, match="normalises"):
        trained("published-none").count_bytes(np.array([5], np.uint16))


@pytest.mark.parametrize("kind", ["lossless-caseops", "bytes-caseops"])
def test_control_ids_cost_nothing_and_end_a_document(kind):
    front_end = trained(kind)
    one = front_end.encode("Model " + TITLE)
    stream = np.array([1, *one, 1, *one], np.uint16)
    counted = front_end.count_bytes(stream)
    assert counted[0] == 0 == counted[len(one) + 1] and counted.sum() == 2 * 9
    cut = np.array([*front_end.encode(TITLE)[:-1], 1, *front_end.encode("ab")], np.uint16)
    assert front_end.count_bytes(cut)[-2:].sum() == 2


def test_what_a_model_wrote_is_shown_only_on_request():
    front_end = trained("lossless-caseops")
    ids = front_end.tokenizer.encode(f"the {TITLE}")
    with pytest.raises(CaseOpsError, match="TITLE ends the text"):
        front_end.decode(ids)
    assert front_end.decode(ids, malformed="keep") == f"the {TITLE}"
    broken = [int(front_end.tokenizer.byte_ids[0xE2]), *front_end.encode("a")]
    assert front_end.decode(broken) == "\ufffda"


def test_operators_are_single_pieces_of_trained_vocabularies():
    for config in (SentencePieceTokenizer(vocab_size=400), PublishedSentencePiece(vocab_size=330)):
        front_end = train_front_end(CaseOps(), config, corpus())
        ids = front_end.encode("The NASA iPhone")
        operators = [front_end.tokenizer.processor.piece_to_id(operator) for operator in OPERATORS]
        assert len(set(operators)) == 4 and set(operators[:3]) <= set(ids)
        pieces = [front_end.piece(token) for token in range(front_end.vocab_size)]
        assert not any("A" <= c <= "Z" for piece in pieces[4:] if not piece.startswith("<0x") for c in piece)


@pytest.mark.parametrize("kind", ["lossless-caseops", "published-none", "bytes-none", "bytes-caseops"])
def test_saved_and_loaded(kind, tmp_path):
    front_end = trained(kind)
    description = json.loads(json.dumps(front_end.description()))
    assert set(description["tokenizer"]) == {"kind", "sha256", "vocab_size", "normalization"}
    front_end.save(tmp_path)
    loaded = FrontEnd.load(tmp_path, description)
    assert loaded.encode("The model 12") == front_end.encode("The model 12")
    assert (loaded.lossless, loaded.vocab_size) == (front_end.lossless, front_end.vocab_size)
    assert [path.name for path in tmp_path.iterdir()] == ([] if kind[:5] == "bytes" else ["tokenizer.model"])


def test_another_tokenizer_than_the_described_one_is_refused(tmp_path):
    front_end = trained("lossless-none")
    trained("published-none").save(tmp_path)
    with pytest.raises(UserError, match=r"tokenizer\.model is not the tokenizer of the manifest: sha256 is"):
        FrontEnd.load(tmp_path, front_end.description())
    unknown = front_end.description() | {"transform": {"kind": "rot13"}}
    with pytest.raises(UserError, match="rot13.*does not know"):
        FrontEnd.load(tmp_path, unknown)
    other = front_end.description() | {"tokenizer": {"kind": "words"}}
    with pytest.raises(UserError, match="tokenizer kind 'words'"):
        FrontEnd.load(tmp_path, other)


def test_the_byte_tokenizer_is_the_published_one():
    tokenizer = ByteTokenizer()
    assert tokenizer.vocab_size == Bytes().vocab_size == 260
    assert tokenizer.encode("Aé") == [4 + 0x41, 4 + 0xC3, 4 + 0xA9]
    assert [tokenizer.piece(token) for token in (1, 69)] == ["<s>", "<0x41>"]
    assert tokenizer.decode([1, 69, 2]) == "A"
    escaped = trained("bytes-caseops").encode_documents([f"é{TITLE}A"])
    assert escaped.token_bytes.tolist() == [1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 1]


needs_model = pytest.mark.skipif(not MODELS, reason=f"needs {MODEL} beside the checkout")


@needs_model
def test_equals_the_published_ids_and_sidecar():
    front_end = trained("file_published-caseops")
    items = json.loads((GOLDEN / "caseops_strings.json").read_text())["items"]
    texts = ["".join(map(chr, item["s"])) for item in items]
    ids, counts = together(front_end, texts)
    assert ids == [item["ids"] for item in items]
    for text, item, count in zip(texts, items, counts, strict=True):
        assert front_end.surface_bytes(text).tolist() == item["bytes_1855"]
        assert sum(count) == (item["utf8_len"] if count else 0)


@needs_model
def test_the_published_vocabulary_without_its_normaliser():
    published, lossless = trained("file_published-caseops").tokenizer, trained("file_lossless-caseops").tokenizer
    assert lossless.model == lossless_model(published.model) == lossless_model(lossless.model)
    assert lossless.piece_bytes == published.piece_bytes
    plain = "the model reads every token once, and pays for it."
    assert lossless.encode(plain) == published.encode(plain)
