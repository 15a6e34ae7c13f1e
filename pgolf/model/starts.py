"""Initial values of the matrices, other than those which their modules chose."""

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from pgolf.model.roles import Init, Orthogonal, declared, normal, orthogonal

if TYPE_CHECKING:
    from pgolf.model.gpt import GPT


Kind = Literal["orthogonal", "uniform", "normal"]


class MatrixStart:
    """Matrices that would start orthogonal start so instead; those that start at zero, or at values of their own,
    stay.

    kind: "orthogonal"; "uniform": U(-1/sqrt(in), 1/sqrt(in)), as torch's linear layers do (2026-03-17); "normal":
    N(0, std^2). output_gain: "depth" multiplies those of modules named `proj` by 1 / sqrt(2 layers), which in the
    records of 2026-03-20 to 22 were the projections of bigrams and value embeddings, since blocks' own started at zero.

    Raises ValueError when std is given without kind "normal", or not positive with it, and when no matrix starts so.
    """

    def __init__(self, *, kind: Kind, std: float | None, output_gain: Literal["depth"] | None) -> None:
        if (std is not None) != (kind == "normal") or (std is not None and std <= 0):
            raise ValueError(f"matrix_init.std={std}: a positive number with kind=normal, null with any other")
        self.kind, self.std, self.output_gain = kind, std, output_gain

    def fit(self, model: "GPT") -> None:
        """Change how the matrices start."""
        found = 0
        for name, (part, local) in declared(model).items():
            init = part.inits[local]
            if part.roles[local] == "matrix" and isinstance(init, Orthogonal):
                output = name.endswith(".proj.weight") and self.output_gain == "depth"
                part.inits[local] = self._init(init.gain * (2 * len(model.blocks)) ** -0.5 if output else init.gain)
                found += 1
        if not found:
            raise ValueError("matrix_init: no matrix of the model starts orthogonal")

    def _init(self, gain: float) -> Init:
        if self.kind == "orthogonal":
            return orthogonal(gain)
        return normal(gain * self.std) if self.std is not None else uniform(gain)


def uniform(gain: float = 1.0) -> Init:
    """A matrix [out, in] with elements from U(-gain/sqrt(in), gain/sqrt(in))."""

    def fill(tensor: Tensor, generator: torch.Generator) -> None:
        bound = gain / math.sqrt(tensor.shape[1])
        tensor.uniform_(-bound, bound, generator=generator)

    return fill
