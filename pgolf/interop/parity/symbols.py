"""How quantised tensors are compared: symbols and scales exact, but for a few values that lie on a rounding edge."""

from collections.abc import Mapping

from torch import Tensor

from pgolf.interop.parity.case import Array, Case, Comparison
from pgolf.quant.encoded import Encoded

TIES = 3
"""Rows of a tensor that may differ: the last bits of BLAS and LAPACK decide on which side of an edge a value falls, and
error feedback carries that through the rest of its row."""
TIED_SHARE = 10
"""One row in so many may differ where the Hessian, too, was computed here: those of a few tokens are near singular."""
ERROR = 1e-3
"""Relative tolerance of the norms of errors, which ties move."""
LARGE = 65_536
"""The scripts quantise tensors with more elements."""
SCALE = 1e-3  # one unit in the last place of float16; the SVD behind a factor is not the same to the last bit


def compare_stored(
    found: Comparison, case: Case, name: str, encoded: Encoded, weight: Tensor, ties: int = TIES
) -> None:
    """One tensor against the case: symbols and scales, or, where they are omitted, float16."""
    for symbols, scales in (("q", "scale"), ("gq", "gs")):
        if f"res/{name}.{symbols}" in case.arrays:
            kept = case.arrays[f"res/{name}.{symbols}"], case.arrays[f"res/{name}.{scales}"]
            compare_rows(found, name, encoded, *kept, ties=max(ties, TIES))
            return
    exact = case.arrays.get(f"res/{name}", weight.half().numpy() if weight.is_floating_point() else weight.numpy())
    found.exact(name, encoded.parts["values"], exact)
    expected = case.meta["quant_meta"][name]
    found.exact(f"scheme of {name}", expected.startswith("passthrough"), True)


def compare_rows(
    found: Comparison, what: str, encoded: Encoded, symbols: Array, scales: Array, ties: int = TIES
) -> None:
    """Scales to the bit, symbols but for ties."""
    if "symbols" not in encoded.parts or encoded.parts["symbols"].shape != symbols.shape:
        found.exact(f"scheme of {what}", encoded.scheme, "symbols and scales")
        return
    found.exact(f"scales of {what}", encoded.parts["scales"], scales)
    if not ties:
        found.exact(f"symbols of {what}", encoded.parts["symbols"], symbols)
        return
    differing = int((encoded.parts["symbols"] != symbols).any(axis=1).sum())
    found.at_most(f"number of rows of {what} that may differ", differing, ties)
    if differing:
        found.remarks.append(f"{differing} of {len(symbols)} rows of {what} differ by a tie")


def compare_factors(
    found: Comparison,
    what: str,
    parts: Mapping[str, Tensor],
    kept: Mapping[str, Array],
    form: str,
    ties: int = TIES,
) -> None:
    """Packed factors; `form` makes their names in the case of qA, sA, qB and sB."""
    for part, name in (("factor_a", "qA"), ("scales_a", "sA"), ("factor_b", "qB"), ("scales_b", "sB")):
        got, expected = parts[part].numpy(), kept[form.format(name)]
        if ties and part.startswith("factor"):
            found.at_most(f"number of symbols in {part} of {what} that may differ", int((got != expected).sum()), ties)
        elif ties:
            found.near(f"{part} of {what}", got, expected, SCALE)
        else:
            found.exact(f"{part} of {what}", got, expected)
