"""Sorted rows: the published walk."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pgolf.quant.ordering import similarity_order


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.int8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(-128, 127)))
def test_equals_brute_force(matrix: np.ndarray) -> None:
    rows = matrix.tolist()
    order, unused = [0], list(range(1, len(rows)))
    while unused:
        distances = [sum(abs(a - b) for a, b in zip(rows[order[-1]], rows[row], strict=True)) for row in unused]
        order.append(unused.pop(distances.index(min(distances))))
    assert similarity_order(matrix).tolist() == order
