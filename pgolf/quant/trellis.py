"""Trellis-coded quantisation: a finer grid than symbols alone could tell; the path so far says which half is meant.

Marcellin and Fischer, 1990; entropy-coded: Fischer and Wang, 1992. Two codebooks share a grid of half a step; each has
every second point. A symbol's parity moves a state machine of eight states, and the state says from which codebook the
next symbol is (`pgolf.quant.encoded.trellis_codebooks`). The encoder searches the path with the least error (Viterbi).
At the rates used here the error falls by about one decibel at equal entropy, that is 0.18 bit a weight.

Neither codebook has a zero then: values much smaller than a step come back as a quarter of one, which below some 0.8
bit a weight does more harm than none at all. With `zero`, both have it, as in the dependent quantisation of video
coding (H.266): even points and zero, odd points and zero. That gives up 0.1 to 0.2 decibel at 2 to 4 bits.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from pgolf.quant.rans import TRELLIS

Floats = npt.NDArray[np.float32]

STATES = len(TRELLIS)
PREDECESSORS = np.array(
    [[(s, p) for s in range(STATES) for p in (0, 1) if TRELLIS[s, p] == to] for to in range(STATES)]
)
"""The two (state, parity) that lead to every state; int64 [8, 2, 2]."""
FROM, PARITY = PREDECESSORS[:, :, 0], PREDECESSORS[:, :, 1]
BRANCH = 2 * (FROM & 1) + PARITY
"""Index of the branch, codebook * 2 + parity, of the two ways into every state; int64 [8, 2]."""


def candidates(values: Floats, largest: int) -> tuple[Floats, Floats]:
    """The nearest symbol of every branch, and its error, for values in steps.

    `values` of any shape [...]; returns symbols and errors, float32 [4, ...] (codebook * 2 + parity). Symbols lie
    between -largest and largest, an odd number.
    """
    quarter = np.float32(0.25)
    centred: Floats = np.stack([values + quarter, values + quarter, values - quarter, values - quarter])
    parity = np.array([0, 1, 0, 1], np.float32).reshape(4, *[1] * values.ndim)
    bound = largest - 1 + parity
    symbols: Floats = np.clip(2 * np.round((centred - parity) / 2) + parity, -bound, bound)
    return symbols, centred - symbols


def zero_candidates(values: Floats, largest: int) -> tuple[Floats, Floats]:
    """As `candidates`, for the codebooks that both have a zero."""
    magnitudes, found = np.abs(values), []
    for codebook in (0.0, 0.5):
        for parity in (0, 1):
            nearest = 2 * np.round((magnitudes + codebook - parity) / 2) + parity
            symbols = np.clip(nearest, parity, largest - 1 + parity)
            # behind an even 0 comes 2, which is at 1.5 steps in the second codebook
            beyond = parity or magnitudes >= (2 - codebook) / 2
            found.append(np.where(beyond, symbols, 0))
    chosen: Floats = (np.stack(found) * np.where(values < 0, -1, 1)).astype(np.float32)
    books = np.array([0, 0, 1, 1], np.float32).reshape(4, *[1] * values.ndim)
    return chosen, values - points(chosen, books, zero=True)


def points(symbols: Floats, codebooks: npt.NDArray[Any], zero: bool) -> Floats:
    """What symbols of codebooks 0 and 1 stand for, in steps, float32."""
    shift = np.sign(symbols) * -0.5 * codebooks if zero else 0.5 * codebooks - 0.25
    return (symbols + shift).astype(np.float32)


def encode_path(
    values: Floats, weights: Floats, segment: int, largest: int = 127, zero: bool = False
) -> tuple[npt.NDArray[np.int8], Floats]:
    """The symbols whose path has the least weighted squared error, and the values they stand for.

    Args:
        values: in steps, float32 [rows].
        weights: how much the squared error of each counts, float32 [rows], not negative.
        segment: rows of a path; each begins in state 0, and all are searched at once.
        largest: bound of the symbols' magnitudes, odd.
        zero: whether both codebooks have a zero.

    Returns symbols int8 [rows] and values in steps, float32 [rows].
    """
    rows, count = len(values), -(-len(values) // segment)
    padded = np.zeros((2, count * segment), np.float32)
    padded[0, :rows], padded[1, :rows] = values, weights
    # [steps, segments]: one step of all paths is contiguous
    values, weights = np.ascontiguousarray(padded.reshape(2, count, segment).transpose(0, 2, 1))
    symbols, errors = (zero_candidates if zero else candidates)(values, largest)
    costs = np.ascontiguousarray((errors * errors * weights).transpose(1, 0, 2))
    states, branches = _search(costs)
    steps, paths = np.indices(values.shape)
    chosen = symbols[branches, steps, paths]
    decoded = points(chosen, states & 1, zero)
    return chosen.T.reshape(-1)[:rows].astype(np.int8), decoded.T.reshape(-1)[:rows].astype(np.float32)


def _search(costs: Floats) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Viterbi: `costs` [steps, 4, paths] of the branches -> states left and branches taken, int64 [steps, paths].

    Steps follow each other, so what can be done for all of them at once stands before and behind the two loops.
    """
    steps, _, paths = costs.shape
    by_way = costs[:, BRANCH.T]  # [steps, 2 ways, 8 states, paths]
    total = np.full((STATES, paths), np.inf, np.float32)
    total[0] = 0
    seconds = np.empty((steps, STATES, paths), bool)
    ways = np.ascontiguousarray(FROM.T)
    for ahead, is_second in zip(by_way, seconds, strict=True):
        ahead += total.take(ways, axis=0)
        np.less(ahead[1], ahead[0], out=is_second)
        total = np.minimum(ahead[0], ahead[1])
    # flat indices into [8 states, paths], so that a step back is one look-up
    everyone = np.arange(paths)
    before = np.where(seconds, FROM[:, 1, None], FROM[:, 0, None]) * paths + everyone
    reached = np.empty((steps + 1, paths), np.int64)
    reached[steps] = total.argmin(axis=0) * paths + everyone
    for step in range(steps - 1, -1, -1):
        reached[step] = before[step].take(reached[step + 1])
    states = reached // paths
    left, entered = states[:-1], states[1:]
    return left, BRANCH[entered, (FROM[entered, 1] == left).astype(np.int64)]
