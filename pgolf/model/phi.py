"""The golden ratio and the constants that PR 2059 derives from it."""

import math

PHI = (1.0 + math.sqrt(5.0)) / 2.0
INVERSE = PHI - 1.0
"""1 / phi."""
ALPHA = (math.sqrt(5.0) - 2.0) / 2.0
"""alpha_phi = phi^-3 / 2 = 0.118034."""
LOOPS = round(PHI**3)
"""phi^3 = 4.236, rounded: how often a universal-transformer block is applied."""
SEEDS = (1597, 2584, 4181, 6765, 10946)
"""The Fibonacci numbers F17..F21, named before any run."""
