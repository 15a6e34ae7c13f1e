"""Latent prediction: a small predictor is rolled ahead in a latent space that is kept from collapsing."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from pgolf.data.loaders import Batch
from pgolf.data.validation import BOS_ID
from pgolf.model.gpt import GPT
from pgolf.model.roles import Part, constant, orthogonal
from pgolf.optim.schedule import Position, Turn
from pgolf.train.loss.forward import Forward
from pgolf.train.loss.objective import Draw, Facts

FIRST_KNOT, LAST_KNOT, KNOTS = 0.2, 4.0, 17


class Predictor(Part):
    """z = h W^T in `latent` dimensions, and one step ahead z + relu(z U^T)^2 V^T with V from zero: it begins as the
    identity."""

    def __init__(self, dim: int, latent: int) -> None:
        super().__init__()
        self.declare("encode", (latent, dim), "matrix", orthogonal())
        self.declare("up", (2 * latent, latent), "matrix", orthogonal())
        self.declare("down", (latent, 2 * latent), "matrix", constant(0.0))

    def encoded(self, hidden: Tensor) -> Tensor:
        """hidden [B, T, dim] -> fp32 z [B, T, latent]."""
        return nn.functional.linear(hidden, self.get_parameter("encode").to(hidden.dtype)).float()

    def forward(self, z: Tensor) -> Tensor:
        """z [B, T, latent] -> one step ahead."""
        hidden = nn.functional.linear(z, self.get_parameter("up").to(z.dtype)).relu().square()
        return z + nn.functional.linear(hidden, self.get_parameter("down").to(z.dtype)).float()


class LatentRollout:
    """coefficient * mean over k = 1..steps of the mean square error of the predictor, applied k times to z_t, for
    z_{t+k} (which is not detached), and regulariser * SIGReg of z (the JEPA of 2026-03, early non-record track, both
    coefficients 1 there).

    SIGReg, over random unit projections a: for `sampled` tokens of a micro-batch the characteristic function of a.z is
    compared with that of N(0, 1) at 17 knots t in [0.2, 4]: sum of w_t ((mean cos(t a.z) - exp(-t^2/2))^2 +
    (mean sin(t a.z))^2), w_t = 2 dt exp(-t^2/2), dt exp(-t^2/2) at both ends, mean over projections. It was published
    per place in the row over the rows of a batch; packed batches have one row, so here the tokens are drawn from the
    whole micro-batch, and the micro-batches of a step are averaged.

    h is the normed hidden state. A document is not left, as in `MultiToken`. What is not published is chosen: the
    predictor's form and the number of projections. The predictor belongs to training alone.
    Raises ValueError for numbers out of range.
    """

    wanted: frozenset[int] = frozenset()
    turns: Sequence[Turn] = ()

    def __init__(
        self, *, steps: int, latent: int, coefficient: float, regulariser: float, projections: int, sampled: int
    ) -> None:
        if min(steps, latent, projections) < 1 or sampled < 2:
            raise ValueError(
                f"latent rollout: steps={steps}, latent={latent}, projections={projections} must be at least 1 and "
                f"sampled={sampled} at least 2"
            )
        if not coefficient > 0.0 or not regulariser >= 0.0:
            raise ValueError(
                f"latent rollout: coefficient={coefficient} must be positive and regulariser={regulariser} not negative"
            )
        self.steps, self.latent, self.weight, self.regulariser = steps, latent, coefficient, regulariser
        self.projections, self.sampled, self.parts = projections, sampled, steps + 1

    def refusals(self, lengths: Sequence[int]) -> Iterator[str]:
        """Sequences too short for the last step."""
        if min(lengths) <= self.steps:
            yield f"{self.steps} steps ahead leave sequences of {min(lengths)} tokens: use fewer steps"

    def heads(self, model: GPT) -> Part | None:
        """The predictor."""
        return Predictor(model.dim, self.latent)

    def coefficient(self, position: Position) -> float:
        """1, times the parts: the coefficients are in the sums."""
        return float(self.parts)

    def prepare(self, batch: Batch, draw: Draw) -> tuple[Facts, Sequence[float]]:
        """Which tokens count for each step (fp32 [steps, B, T]), flat places of the sampled tokens and unit projections
        [latent, projections]; counts, and 1 for the regulariser."""
        generator, document = draw(), (batch.inputs == BOS_ID).cumsum(-1)
        counted = torch.zeros(self.steps, *batch.inputs.shape)
        for k in range(1, self.steps + 1):
            counted[k - 1, :, :-k] = (document[:, k:] == document[:, :-k]).float()
        places = torch.randint(batch.inputs.numel(), (self.sampled,), generator=generator)
        directions = nn.functional.normalize(torch.randn(self.latent, self.projections, generator=generator), dim=0)
        return (counted, places, directions), [*counted.sum((1, 2)).tolist(), 1.0]

    def __call__(self, made: Forward, heads: Part | None, facts: Facts) -> Tensor:
        """fp32 [steps + 1]: sums over tokens of the mean square errors / steps, and the regulariser."""
        assert isinstance(heads, Predictor)
        counted, places, directions = facts
        z = ahead = heads.encoded(made.hidden)
        sums = []
        for k in range(1, self.steps + 1):
            ahead = heads(ahead)
            errors = (ahead[:, :-k] - z[:, k:]).square().mean(-1) * counted[k - 1, :, :-k]
            sums.append(self.weight / self.steps * errors.sum())
        return torch.stack([*sums, self.regulariser * sigreg(z.flatten(0, 1)[places] @ directions)])


def sigreg(projected: Tensor) -> Tensor:
    """How far the distribution of each column of fp32 [n, projections] is from N(0, 1), a mean over columns."""
    knots = torch.linspace(FIRST_KNOT, LAST_KNOT, KNOTS, device=projected.device)
    normal = torch.exp(-knots.square() / 2)
    weights = 2.0 * (LAST_KNOT - FIRST_KNOT) / (KNOTS - 1) * normal
    ends = torch.ones_like(weights)
    ends[0] = ends[-1] = 0.5
    angles = projected[..., None] * knots
    apart = (angles.cos().mean(0) - normal).square() + angles.sin().mean(0).square()
    return (apart * weights * ends).sum(-1).mean()
