"""A learning rate of the matrices that is measured in the golden ratio (PR 2059)."""

from pgolf.model.phi import ALPHA

BASELINE_RATE = 0.04
"""Of the matrices in the baseline of 2026-03-17, which the scale maps onto alpha_phi."""


class MatrixRateScale:
    """The learning rate of the matrices' optimiser times `scale`; the other roles keep theirs.

    scale=None: alpha_phi / 0.04 = 2.95085, which makes 0.118034 = phi^-3 / 2 of the baseline's 0.04. Rates of single
    matrices (optim.rules) are multiplied too. PR 2059 multiplied the rate and went on to log the one before; here all
    that shows rates shows the product. Raises ValueError when scale is not positive.
    """

    def __init__(self, *, scale: float | None) -> None:
        if scale is not None and scale <= 0.0:
            raise ValueError(f"optim.lr_scale.scale={scale} must be positive, or null for alpha_phi / {BASELINE_RATE}")
        self.scale = ALPHA / BASELINE_RATE if scale is None else scale
