"""Which documents are adapted to together, in which order, and in chunks of which size."""

from hypothesis import given
from hypothesis import strategies as st

from pgolf.ttt.batches import ChunkSizes, document_batches, learnable, phase_boundaries

LENGTHS = st.lists(st.integers(2, 50), min_size=1, max_size=30)


@given(lengths=LENGTHS, rows=st.integers(1, 7), order=st.sampled_from(["longest_first", "fewest_chunks_first", "file"]))
def test_batches_hold_every_document_once_with_most_chunks_first(lengths, rows, order):
    batches = document_batches(lengths, rows, order, ChunkSizes(8, [[10, 2]]))
    assert sorted(document for batch in batches for document in batch.documents) == list(range(len(lengths)))
    for batch in batches:
        chunks = [(lengths[document] - 2) // batch.chunk for document in batch.documents]
        assert order == "longest_first" or chunks == sorted(chunks, reverse=True)
        assert batch.chunk == (2 if max(lengths[document] for document in batch.documents) <= 10 else 8)


@given(lengths=LENGTHS, rows=st.integers(1, 7))
def test_the_batch_with_the_longest_document_comes_first(lengths, rows):
    batches = document_batches(lengths, rows)
    longest = [lengths[batch.documents[0]] for batch in batches]
    assert longest == sorted(longest, reverse=True)
    assert sum(len(batch.documents) < rows for batch in batches) <= 1


def test_the_file_order_keeps_the_text_in_order():
    batches = document_batches([9, 30, 5, 20], 2, "file")
    assert [batch.documents for batch in batches] == [(1, 0), (3, 2)]


def test_fewest_chunks_first_keeps_the_order_among_equals():
    """Spans of 2 + 8k to 9 + 8k tokens have as many chunks of 8 as each other."""
    batches = document_batches([20, 9, 18, 3], 2, "fewest_chunks_first", ChunkSizes(8, []))
    assert [batch.documents for batch in batches] == [(3, 1), (2, 0)]


def test_published_boundaries():
    assert phase_boundaries(50_000, 2000, 3) == [666, 1333, 2000]
    assert phase_boundaries(50_000, 2500, 3) == [833, 1666, 2500]
    assert phase_boundaries(10, 2000, 4) == [2, 5, 7, 10]


def test_the_longest_of_the_finished_are_not_learned_from():
    """The queue begins with the longest documents, and the cut keeps the shortest of the finished."""
    queue = document_batches([10, 20, 30, 40, 50], 2)
    assert [batch.documents for batch in queue] == [(4,), (3, 2), (1, 0)]
    assert learnable(queue[:2], 2) == [2, 3]
    assert learnable(queue[:2], 3) == [2, 3, 4]


def test_published_chunk_sizes():
    sizes = ChunkSizes(48, [[256, 8], [2000, 24]])
    assert [sizes.of(length) for length in (2, 256, 257, 2000, 2001)] == [8, 8, 24, 24, 48]
    assert sizes.largest == 48 and sizes.at_most(16).of(3000) == 16
