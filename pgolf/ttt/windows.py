"""Cutting the validation text into windows: where each strategy's contexts begin and what each window scores."""

from collections.abc import Iterable

from pgolf.score.scorer import Scorer, Window

Spans = list[tuple[int, int]]


def spans(scorer: Scorer) -> Spans:
    """(first token, end of its charged positions) of what is scored left to right: documents, or the joined text."""
    return [scorer.span(document) for document in range(scorer.num_documents)]


def pieces(documents: Spans, sequence_tokens: int, batch_tokens: int | None) -> list[Window]:
    """Each document in pieces of at most `sequence_tokens` inputs that do not see each other.

    batch_tokens: cut at multiples of it as well, counted from the start of the text, as where a published evaluation
    begins another batch; the piece after such a cut is measured from there.
    """
    windows = []
    for document, (first, end) in enumerate(documents):
        start = first
        while start < end - 1:
            stop = min(start + sequence_tokens, end - 1)
            if batch_tokens is not None:
                stop = min(stop, start // batch_tokens * batch_tokens + batch_tokens)
            windows.append(Window(document, start, start + 1, stop + 1))
            start = stop
    return windows


def sliding_in_documents(documents: Spans, sequence_tokens: int, stride: int) -> list[Window]:
    """Windows that begin anew in every document: the first scores all its positions, others their last `stride`."""
    windows = []
    for document, (first, end) in enumerate(documents):
        score_start = first + 1
        while score_start < end:
            room = sequence_tokens if score_start == first + 1 else stride
            score_end = min(score_start + room, end)
            windows.append(Window(document, max(first, score_end - 1 - sequence_tokens), score_start, score_end))
            score_start = score_end
    return windows


def sliding_over_text(documents: Spans, sequence_tokens: int, stride: int) -> list[Window]:
    """Windows at multiples of `stride` over the whole text, each scoring what the one before did not reach.

    A window's context ends at the start of the document that it scores (with one joined document, it does not). A
    window over several documents becomes one for each. Source: the sliding evaluation of PR 1394 and after; each
    position once.
    """
    windows: list[Window] = []
    targets = documents[-1][1] - 1
    overlap, document = sequence_tokens - stride, 0
    for start in range(0, max(targets - overlap, 1), stride):
        scored = start + overlap if start else 0
        stop = min(start + sequence_tokens, targets)
        while scored < stop:
            while scored >= documents[document][1] - 1:
                document += 1
            first, end = documents[document]
            until = min(stop, end - 1)
            windows.append(Window(document, max(first, start), scored + 1, until + 1))
            scored = until
    return windows


def by_chunk(windows: Iterable[Window], chunk_tokens: int) -> list[list[Window]]:
    """Windows by the chunk of the text in which they begin to score, in order; chunk c is the targets from
    c * chunk_tokens on."""
    chunks: dict[int, list[Window]] = {}
    for window in windows:
        chunks.setdefault((window.score_start - 1) // chunk_tokens, []).append(window)
    return [chunks[chunk] for chunk in sorted(chunks)]
