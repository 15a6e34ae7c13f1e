"""Linear maps that are not one matrix of free elements: two thin factors, with or without a frozen random basis, and
orthogonal matrices.

A basis is drawn from (seed, its name) wherever the model is made, and costs no byte of an artifact. What is trained,
quantised and calibrated are matrices of `Linear`s, so optimisers, schemes and rules by name find them as any other:
`blocks.0.mlp.fc.weight` [out, in] becomes `blocks.0.mlp.fc.down.weight` [r, in] and `blocks.0.mlp.fc.up.weight`
[out, r].
"""

import math
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pgolf.model.roles import Init, Linear, Part, constant, normal, orthogonal
from pgolf.model.roles import Orthogonal as OrthogonalInit

if TYPE_CHECKING:
    from pgolf.model.gpt import GPT


class LowRankLinear(Part):
    """y = (x A) B with A [in, r] and B [r, out], kept transposed as `down.weight` [r, in] and `up.weight` [out, r]."""

    def __init__(self, in_features: int, out_features: int, rank: int, down: Init, up: Init) -> None:
        super().__init__()
        self.down = Linear(in_features, rank, "matrix", down)
        self.up = Linear(rank, out_features, "matrix", up)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        return self.up(self.down(x))


class FrozenPlusLowRank(LowRankLinear):
    """y = x W^T + (x A) B: W [out, in] is frozen and drawn by `basis`, the buffer `basis`; A and B are trained."""

    basis: Tensor

    def __init__(self, in_features: int, out_features: int, rank: int, basis: Init, down: Init, up: Init) -> None:
        super().__init__(in_features, out_features, rank, down, up)
        self.declare_fixed("basis", (out_features, in_features), basis)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        return linear(x, self.basis.to(x.dtype)) + super().forward(x)


class InRandomRows(Part):
    """y = (x R^T) C^T: the r rows of R [r, in], the buffer `basis`, are frozen and drawn by `basis`; C [out, r], the
    parameter `up.weight`, says how they add up to each row of the matrix C R."""

    basis: Tensor

    def __init__(self, in_features: int, out_features: int, rank: int, basis: Init, up: Init) -> None:
        super().__init__()
        self.declare_fixed("basis", (rank, in_features), basis)
        self.up = Linear(rank, out_features, "matrix", up)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        return self.up(linear(x, self.basis.to(x.dtype)))


class OrthogonalFactor(Linear):
    """y = x O^T, O [out, in] the orthogonal factor of `weight`."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        return linear(x, orthogonal_factor(self.weight).to(x.dtype))


class OrthogonalLinear(Part):
    """y = g x O^T: all singular values of the map are |g|.

    `gain` [1] is learned; its start is 1, or 0 towards the residual stream. cap: g is cap tanh(gain / cap), so that no
    singular value reaches cap; None: g is gain.
    """

    gain: nn.Parameter

    def __init__(self, in_features: int, out_features: int, cap: float | None, gain: float) -> None:
        super().__init__()
        self.cap = cap
        self.factor = OrthogonalFactor(in_features, out_features, "matrix", orthogonal())
        self.declare("gain", (1,), "scalar", constant(gain))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        gain = self.gain if self.cap is None else self.cap * torch.tanh(self.gain / self.cap)
        return gain.to(x.dtype) * self.factor(x)


ITERATIONS = 20


def orthogonal_factor(weight: Tensor) -> Tensor:
    """U V^T of weight = U S V^T, fp32 [rows, cols], by 20 steps X <- 1.5 X - 0.5 X X^T X; right to rounding where S
    spans less than three orders of magnitude.

    The steps begin with no singular value above 1, by the bound |(W W^T)^4|^(1/8), which is at most rank^(1/16) times
    the largest. (Published: three power iterations from a vector of ones, which can miss it.)
    """
    with torch.autocast(weight.device.type, enabled=False):
        x = weight.float() if weight.shape[0] <= weight.shape[1] else weight.float().T
        gram = (x @ x.T).detach()
        total = gram.trace().clamp_min(torch.finfo(torch.float32).tiny)
        fourth = torch.linalg.matrix_power(gram / total, 4)
        x = x / (total.sqrt() * torch.linalg.matrix_norm(fourth) ** 0.125)
        for _ in range(ITERATIONS):
            x = 1.5 * x - 0.5 * (x @ x.T) @ x
    return x if weight.shape[0] <= weight.shape[1] else x.T


class Replacing:
    """Weight matrices are made otherwise: those of the linear maps whose name (`blocks.3.mlp.fc`, `blocks.3.attn.c_q`)
    matches one of `patterns`, as file names do."""

    frozen = False

    def __init__(self, *, patterns: list[str]) -> None:
        self.patterns = patterns

    def fit(self, model: "GPT") -> None:
        """Replace the linear maps that match. ValueError when none does, when what replaces one does not fit it, and
        where the MLP of a repeated visit could not begin as the copy of its block's: with frozen maps, or when only one
        of the two is replaced."""
        found = [
            (name, module)
            for name, module in model.named_modules()
            if isinstance(module, Linear)
            and module.roles["weight"] == "matrix"
            and any(fnmatchcase(name, pattern) for pattern in self.patterns)
        ]
        if not found:
            raise ValueError(
                f"basis.patterns={self.patterns} match no linear map; there is blocks.0.mlp.fc, for example"
            )
        for name, module in found:
            if self.frozen and ".repeats." in name:
                raise ValueError("basis: the frozen part of a repeated visit is its own, so repeat_mlp has to be none")
            out_features, in_features = module.weight.shape
            made = self.make(in_features, out_features, module.inits["weight"])
            self.check(name, module, made)
            parent, _, local = name.rpartition(".")
            setattr(model.get_submodule(parent), local, made)
        self._check_repeats(model)

    def _check_repeats(self, model: "GPT") -> None:
        """ValueError when an MLP of a repeated visit is made otherwise than that of its block, whose copy it begins
        as."""
        for layer, block in enumerate(model.blocks):
            shapes = {name: parameter.shape for name, parameter in block.mlp.named_parameters()}
            for repeat in block.repeats:
                own = {source: repeat.get_parameter(name).shape for name, source in repeat.sources().items()}
                if any(shapes.get(source) != shape for source, shape in own.items()):
                    raise ValueError(
                        f"basis.patterns={self.patterns} replace maps of blocks.{layer}.mlp or of its repeated visits "
                        "and not of both, so that these cannot begin as its copies: let the patterns match both, as "
                        "blocks.*.mlp.* does, or take repeat_mlp=none"
                    )

    def make(self, in_features: int, out_features: int, begun: Init) -> nn.Module:
        """What replaces a matrix [out_features, in_features] that would have begun as `begun`."""
        raise NotImplementedError(f"{type(self).__name__} replaces no matrix")

    def check(self, name: str, replaced: Linear, made: nn.Module) -> None:
        """ValueError when `made` should not replace the map `name`."""


class Orthogonal(Replacing):
    """Orthogonal matrices times a learned factor, see `OrthogonalLinear` (orthogonal banks and spectral caps of
    jzmyres' fork). The parameter that they are made of is what is quantised, so the loaded matrices are orthogonal too.

    Every forward makes them anew, some 20 products of a matrix with itself for each, which the figures for operations
    leave out. Raises ValueError for a cap that is not positive.
    """

    def __init__(self, *, patterns: list[str], cap: float | None) -> None:
        super().__init__(patterns=patterns)
        if cap is not None and not cap > 0.0:
            raise ValueError(f"basis.cap={cap} must be positive, or null for none")
        self.cap = cap

    def make(self, in_features: int, out_features: int, begun: Init) -> OrthogonalLinear:
        """An orthogonal matrix; a factor of zero stands for a matrix that would begin at zero."""
        return OrthogonalLinear(in_features, out_features, self.cap, 1.0 if isinstance(begun, OrthogonalInit) else 0.0)


class _Narrow(Replacing):
    """Factors of `rank` take the place of matrices. Raises ValueError for a rank below 1."""

    frozen = True

    def __init__(self, *, rank: int, patterns: list[str]) -> None:
        super().__init__(patterns=patterns)
        if rank < 1:
            raise ValueError(f"basis.rank={rank} must be at least 1")
        self.rank = rank

    def check(self, name: str, replaced: Linear, made: nn.Module) -> None:
        """ValueError when the factors have as many elements as the matrix."""
        trained, whole = sum(parameter.numel() for parameter in made.parameters()), replaced.weight.numel()
        if trained >= whole:
            raise ValueError(
                f"basis.rank={self.rank}: {name} would have {trained:,} elements in place of {whole:,}; lower it, or "
                "leave that map out of basis.patterns"
            )


class LowRank(_Narrow):
    """Two trained factors: x A B, A orthogonal, B as the whole matrix would begin: orthogonal, or zero towards the
    residual stream (Itssshikhar's fork, rank 128 in 15 layers instead of 9)."""

    frozen = False

    def make(self, in_features: int, out_features: int, begun: Init) -> LowRankLinear:
        """Two factors."""
        return LowRankLinear(in_features, out_features, self.rank, orthogonal(), begun)


class RandomPlusLowRank(_Narrow):
    """A frozen matrix and two trained factors: x W^T + x A B with W ~ N(0, 1 / in), A ~ N(0, 0.01^2), B = 0, so that
    also what is written to the residual stream begins as random (2026-04-30, Random_Linear_Adapter)."""

    def make(self, in_features: int, out_features: int, begun: Init) -> FrozenPlusLowRank:
        """A frozen matrix and two factors."""
        frozen = normal(1.0 / math.sqrt(in_features))
        return FrozenPlusLowRank(in_features, out_features, self.rank, frozen, normal(0.01), constant(0.0))


class RandomRows(_Narrow):
    """Coefficients over r frozen random rows: C R with R ~ N(0, 1 / in), C as the whole matrix would begin."""

    def make(self, in_features: int, out_features: int, begun: Init) -> InRandomRows:
        """Frozen rows and their coefficients."""
        return InRandomRows(in_features, out_features, self.rank, normal(1.0 / math.sqrt(in_features)), begun)
