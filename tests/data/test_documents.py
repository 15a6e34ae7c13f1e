"""Which documents are kept, and the split."""

import hashlib

import pytest

from pgolf.data.documents import Document, in_validation, sift, split


def test_what_is_left_out_is_counted():
    gathered = sift([("a", "good text"), ("b", ""), ("c", "a ▁ mark"), ("d", "\ud800"), ("e", "good text")], 1)
    assert [document.name for document in gathered.documents] == ["a"]
    assert gathered.skipped == {
        "contains_u2581": 1,
        "duplicate": 1,
        "lone_surrogate": 1,
        "too_short": 1,
    }


def test_bytes_and_hash_are_of_the_utf8_text():
    document = sift([("a", "naïve ☃")], 1).documents[0]
    assert document.num_bytes == 10
    assert document.sha256 == hashlib.sha256("naïve ☃".encode()).hexdigest()


def test_the_rule_reads_the_first_64_bits():
    half = "8" + "0" * 63
    assert not in_validation(half, 0.5)
    assert in_validation(half, 0.5000001)
    assert in_validation("0" * 64, 1e-9)
    assert not in_validation("f" * 64, 0.999)


@pytest.mark.parametrize("order", ["hash", "source"])
def test_every_document_falls_on_one_side_and_keeps_it(order):
    documents = [Document(str(i), f"text {i}", len(f"text {i}")) for i in range(500)]
    training, validation = split(documents, 0.2, order)
    assert 60 < len(validation) < 140
    assert sorted(d.name for d in training + validation) == sorted(d.name for d in documents)
    fewer, _ = split(documents[:250], 0.2, order)
    assert {d.name for d in fewer} == {d.name for d in training} & {d.name for d in documents[:250]}
    if order == "source":
        assert [int(d.name) for d in training] == sorted(int(d.name) for d in training)
    else:
        assert [d.sha256 for d in training] == sorted(d.sha256 for d in training)
