"""Which positions the published evaluations score: every variant leaves out or repeats others.

A position is the index of a target in a token stream of n tokens, 1 to n - 1; its input is the token before it. T is
the sequence length. Functions give int64 positions in the order of scoring, a repeated one as often as it is scored.
"""

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]


def truncated_length(num_tokens: int, sequence_tokens: int) -> int:
    """Tokens that are kept of a validation stream: whole sequences and the last target."""
    return (num_tokens - 1) // sequence_tokens * sequence_tokens + 1


def rows(num_tokens: int, sequence_tokens: int, world_size: int, rank: int) -> Positions:
    """The contiguous share of a rank of the rows of T targets (baseline eval_val)."""
    num_rows = (num_tokens - 1) // sequence_tokens
    first, last = num_rows * rank // world_size, num_rows * (rank + 1) // world_size
    return np.arange(first * sequence_tokens, last * sequence_tokens, dtype=np.int64) + 1


def whole_batches(num_tokens: int, sequence_tokens: int, batch_rows: int, world_size: int, rank: int) -> Positions:
    """`rows` without the rank's last batch where it is not full (eval_val from #1530 on: that text is not scored)."""
    share = rows(num_tokens, sequence_tokens, world_size, rank)
    per_batch = batch_rows * sequence_tokens
    return share[: len(share) // per_batch * per_batch]


def sliding(num_tokens: int, sequence_tokens: int, stride: int) -> Positions:
    """Windows at multiples of `stride`, each scoring what the one before did not reach: each target once (#1394 on)."""
    targets = num_tokens - 1
    overlap = sequence_tokens - stride
    starts = range(0, max(targets - overlap, 1), stride)
    return _windows([(start, min(start + sequence_tokens, targets), overlap if start else 0) for start in starts])


def sliding_with_tail(num_tokens: int, sequence_tokens: int, stride: int, world_size: int, rank: int) -> Positions:
    """Windows at all multiples of `stride`, each scoring its last `stride` targets (2026-03-19_SlidingWindowEval).

    Windows that the end of the text cuts short score their last `stride` targets too, so the end is scored up to
    T / stride times. Ranks take contiguous shares of the windows.
    """
    targets = num_tokens - 1
    starts = range(0, targets, stride)
    share = starts[len(starts) * rank // world_size : len(starts) * (rank + 1) // world_size]
    windows = []
    for start in share:
        end = min(start + sequence_tokens, targets)
        windows.append((start, end, max(end - start - stride, 0) if start else 0))
    return _windows(windows)


def _windows(windows: list[tuple[int, int, int]]) -> Positions:
    """Positions of (first input, end, inputs that are only context) windows."""
    parts = [np.arange(start + context, end, dtype=np.int64) + 1 for start, end, context in windows]
    return np.concatenate([np.zeros(0, np.int64), *parts])
