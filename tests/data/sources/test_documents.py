"""Which documents are kept, and the split."""

import hashlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgolf.data.sources.documents import Document, SplitRule, place, sift
from pgolf.errors import UserError


def documents(texts: list[str]) -> list[Document]:
    return list(sift(((str(index), text) for index, text in enumerate(texts)), 1, Counter()))


def test_what_is_left_out_is_counted():
    left_out: Counter[str] = Counter()
    texts = [("a", "good text"), ("b", ""), ("c", "a ▁ mark"), ("d", "\ud800 half"), ("e", "x")]
    assert [document.name for document in sift(texts, 2, left_out)] == ["a", "c"]
    assert left_out == {"lone_surrogate": 1, "too_short": 2}


def test_bytes_and_hash_are_of_the_utf8_text():
    (document,) = documents(["naïve ☃"])
    assert document.num_bytes == 10
    assert document.sha256 == hashlib.sha256("naïve ☃".encode()).digest()


def test_the_hash_rule_reads_the_first_64_bits():
    half = b"\x80" + bytes(31)
    assert SplitRule(None, 0.5).split_of(0, half) == "train"
    assert SplitRule(None, 0.5000001).split_of(0, half) == "val"
    assert SplitRule(None, 1e-9).split_of(0, bytes(32)) == "val"
    assert SplitRule(None, 0.999).split_of(0, b"\xff" * 32) == "train"


@pytest.mark.parametrize(
    ("val_docs", "val_fraction", "sentence"),
    [
        (None, None, "set exactly one"),
        (3, 0.5, "val_docs=3 and val_fraction=0.5: set exactly one"),
        (0, None, "at least 1"),
        (None, 0.0, "between 0 and 1"),
        (None, 1.0, "between 0 and 1"),
    ],
)
def test_exactly_one_rule_is_set(val_docs, val_fraction, sentence):
    with pytest.raises(ValueError, match=sentence):
        SplitRule(val_docs, val_fraction)


TEXTS = st.lists(st.text(min_size=1, max_size=4), min_size=2, max_size=40)


@given(texts=TEXTS, val_docs=st.integers(1, 10))
def test_the_first_documents_kept_are_validation(texts, val_docs):
    kept, left_out = list(dict.fromkeys(texts)), Counter()
    placed = place(documents(texts), SplitRule(val_docs), "drop", left_out)
    if len(kept) <= val_docs:
        with pytest.raises(UserError, match=rf"but the source has only {len(kept)}"):
            list(placed)
        return
    found = list(placed)
    assert [one.document.text for one in found] == kept
    assert [one.number for one in found] == list(range(len(kept)))
    assert [one.split for one in found] == ["val"] * val_docs + ["train"] * (len(kept) - val_docs)
    assert left_out["duplicate"] == len(texts) - len(kept)


@given(texts=TEXTS, val_docs=st.integers(1, 10))
def test_refusing_repetitions_means_across_the_splits_only(texts, val_docs):
    val, train = texts[:val_docs], texts[val_docs:]
    placed = place(documents(texts), SplitRule(val_docs), "refuse", Counter())
    if not train or set(val) & set(train):
        with pytest.raises(UserError):
            list(placed)
    else:
        assert [one.document.text for one in placed] == texts


def test_a_text_in_both_splits_is_refused_with_both_names_and_the_way_out():
    with pytest.raises(UserError) as caught:
        list(place(documents(["a", "b", "c", "b"]), SplitRule(2), "refuse", Counter()))
    sentence = str(caught.value)
    assert "training document '3'" in sentence and "validation document '1'" in sentence
    assert "data.duplicates=drop" in sentence


def test_a_share_by_hash_does_not_depend_on_the_other_documents():
    texts = [f"text {number}" for number in range(500)]
    rule = SplitRule(None, 0.2)
    everything = {one.document.text: one.split for one in place(documents(texts), rule, "drop", Counter())}
    half = {one.document.text: one.split for one in place(documents(texts[::2]), rule, "drop", Counter())}
    assert 60 < sum(split == "val" for split in everything.values()) < 140
    assert half.items() <= everything.items()


def test_equal_texts_lie_on_one_side_of_a_share_by_hash():
    texts = [f"text {number % 50}" for number in range(200)]
    found = list(place(documents(texts), SplitRule(None, 0.3), "refuse", Counter()))
    assert len(found) == 200
    assert all(len({one.split for one in found if one.document.text == text}) == 1 for text in texts)


@pytest.mark.parametrize(
    ("texts", "rule", "sentence"),
    [
        ([], SplitRule(3), r"gave no document \(left out: 7 too_short\): name files"),
        (
            ["a", "b"],
            SplitRule(5),
            r"data\.val_docs=5 .* only 2 \(left out: 7 too_short\), .*set data\.val_docs below 2",
        ),
        (["a"], SplitRule(None, 0.999999), r"none of the 1 documents falls in the training split"),
        (["a"], SplitRule(None, 0.000001), r"none of the 1 documents falls in the validation split"),
    ],
)
def test_an_empty_split_is_a_sentence(texts, rule, sentence):
    with pytest.raises(UserError, match=sentence):
        list(place(documents(texts), rule, "drop", Counter(too_short=7)))
