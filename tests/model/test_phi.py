"""The constants of the golden ratio, exactly."""

import math

import pytest

from pgolf.model.phi import ALPHA, INVERSE, LOOPS, PHI, SEEDS

sympy = pytest.importorskip("sympy", reason="sympy is in the extra `dev`")
EXACT = (1 + sympy.sqrt(5)) / 2


def identity(difference) -> bool:
    return bool(sympy.simplify(difference) == 0)


def test_the_identities_hold_exactly() -> None:
    assert identity(EXACT**2 + EXACT**-2 - 3)
    assert identity(1 / EXACT - (EXACT - 1))
    assert identity(EXACT**-3 / 2 - (sympy.sqrt(5) - 2) / 2)
    assert not identity(EXACT**2 + EXACT**-2 - sympy.Rational(3000001, 1000000))


@pytest.mark.parametrize(
    ("constant", "exact"), [(PHI, EXACT), (INVERSE, 1 / EXACT), (ALPHA, EXACT**-3 / 2)], ids=["phi", "1/phi", "alpha"]
)
def test_a_constant_is_the_exact_number_to_the_precision_of_a_float(constant: float, exact) -> None:
    assert abs(sympy.Float(constant, 40) - sympy.N(exact, 40)) < 2 * math.ulp(PHI)


def test_the_loops_and_the_seeds() -> None:
    assert int(sympy.floor(EXACT**3 + sympy.Rational(1, 2))) == LOOPS == 4
    assert [int(sympy.fibonacci(index)) for index in range(17, 22)] == list(SEEDS)
    assert f"{ALPHA / 0.04:.16f}".startswith("2.95084971874737")
