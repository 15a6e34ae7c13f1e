"""Cross entropy weighted by the bytes that a token stands for, which is what bits per byte counts."""

from collections.abc import Sequence

import torch
from torch import Tensor


class ByteWeights:
    """w(t) = max(bytes(t), 1) ^ power, at most `most`; the loss is sum(w * cross entropy) / sum(w) over the tokens of a
    whole step (PR 1519 with power 1 and no `most`, where the sums were each micro-batch's own).

    bytes(t): by the table of the data set's tokenizer, as the evaluation charges them; a token whose bytes depend on
    the tokens before it counts as if it stood alone. spaces: whether the space that a piece begins with is one of its
    bytes, as evaluation has it; false: as published. most: None for no limit.

    Dividing by the sum of the weights makes a common factor of theirs immaterial, so the published division by their
    mean is included. Raises ValueError when power or most is not positive.
    """

    def __init__(self, *, power: float, most: float | None, spaces: bool) -> None:
        if not power > 0.0 or (most is not None and not most > 0.0):
            raise ValueError(f"train.loss.weights: power={power} and most={most} must be positive")
        self.power, self.most, self.spaces = power, most, spaces

    def table(self, token_bytes: Sequence[int], leading_spaces: Sequence[bool]) -> Tensor:
        """fp32 [vocab_size] of weights. token_bytes: of every id, with its leading space; leading_spaces: which ids
        have one."""
        counted = torch.tensor(token_bytes, dtype=torch.float64)
        if not self.spaces:
            counted -= torch.tensor(leading_spaces, dtype=torch.float64)
        weights = counted.clamp_min(1.0) ** self.power
        return weights.clamp_max(self.most if self.most is not None else float("inf")).float()
