"""Rows of a matrix in an order that puts like beside like, for coders that look for repetitions (PR 1855)."""

import numpy as np
import numpy.typing as npt


def similarity_order(matrix: npt.NDArray[np.int8]) -> npt.NDArray[np.int32]:
    """A walk over the rows from row 0, always to the unused row at the least L1 distance (the first of several).

    `matrix` int8 [rows, cols]; returns the row at each place, int32 [rows].
    """
    rest = np.arange(len(matrix))
    values = matrix.astype(np.int16)
    order = []
    at = 0
    while len(rest):
        order.append(int(rest[at]))
        current = values[at]
        rest, values = np.delete(rest, at), np.delete(values, at, axis=0)
        if len(rest):
            at = int(np.abs(values - current).sum(axis=1, dtype=np.int64).argmin())
    return np.array(order, np.int32)
