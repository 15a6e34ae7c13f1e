"""What a repeated visit of a block adds to the stream, besides what the block says.

All of it happens after a block, on one stream: visits on two lanes are left alone. There is one forward pass, so what
adapters learn on is the same function (published test-time training forgot the blend, and scored another model).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from pgolf.model.context import Walk
from pgolf.model.plan import LayerPlan, Pass
from pgolf.model.roles import Part, constant

if TYPE_CHECKING:
    from pgolf.model.gpt import GPT

CARRY = "recurrence"
"""Name of what a visit leaves in the walk for later ones, by block."""


class Recurrence(Part):
    """What all have: the blocks that some plan visits again outside of lanes. plans: all that the model may walk.

    Raises ValueError when there is no such block.
    """

    def __init__(self, plans: Mapping[str, LayerPlan]) -> None:
        super().__init__()
        again = [step for plan in plans.values() for step in plan.passes if step.visit and step.form != "lanes"]
        if not again:
            raise ValueError(
                "recurrence: no plan visits a block again outside of lanes; set model.depth.num_loops or "
                "model/depth/repeat, or recurrence=none"
            )
        self.layers = sorted({step.block for step in again})
        self.visits = max(step.visit for step in again)
        self.column = {layer: index for index, layer in enumerate(self.layers)}

    def forward(self, before: Tensor, after: Tensor, step: Pass, walk: Walk) -> Tensor:
        """before: what the block read, after: what it made of it, [B, T, dim] -> what the next block reads."""
        raise NotImplementedError(f"{type(self).__name__} does nothing")

    def _check(self, layers: list[int]) -> None:
        if layers != self.layers:
            raise ValueError(
                f"recurrence.layers={layers} are those that the constants were found for, but the plans of this model "
                f"repeat layers {self.layers}: other bounds need other constants"
            )


class CarryAdded(Recurrence):
    """x <- block(x) + a_i c_i on visits after the first, where c_i is what the block's last visit in the first half of
    the plan (or else its first) gave (PR 1714).

    carry_alpha: one for every repeated block, from 0, which is plain recurrence. Published with one for every block,
    those of the others without effect.
    """

    carry_alpha: nn.Parameter

    def __init__(self, plans: Mapping[str, LayerPlan]) -> None:
        super().__init__(plans)
        self.declare("carry_alpha", (len(self.layers),), "scalar", constant(0.0))

    def forward(self, before: Tensor, after: Tensor, step: Pass, walk: Walk) -> Tensor:
        """[B, T, dim] -> [B, T, dim]."""
        if step.block not in self.column:
            return after
        if step.visit:
            after = after + self.carry_alpha[self.column[step.block]].to(after.dtype) * walk.kept[CARRY, step.block]
        if step.early or not step.visit:
            walk.kept[CARRY, step.block] = after
        return after


class Blended(Recurrence):
    """x <- x + a_vi (block(x) - x) on visit v = 1, 2, ... after the first of block i.

    recur_alpha [visits, repeated blocks] starts at `init`: 1 is plain recurrence, 0 is none, since then a repeated
    visit changes nothing (and learns from its first step on). Learned values rise with depth on the second visit and
    fall on the third, from 1.08, 1.27, 1.43 to 1.02, 0.97, 0.83 in layers 3 to 5.
    """

    recur_alpha: nn.Parameter

    def __init__(self, plans: Mapping[str, LayerPlan], init: float) -> None:
        super().__init__(plans)
        self.declare("recur_alpha", (self.visits, len(self.layers)), "scalar", constant(init))

    def forward(self, before: Tensor, after: Tensor, step: Pass, walk: Walk) -> Tensor:
        """[B, T, dim] -> [B, T, dim]."""
        if not step.visit:
            return after
        alpha = self.recur_alpha[step.visit - 1, self.column[step.block]].to(after.dtype)
        return before + alpha * (after - before)


class ConstantBlend(Recurrence):
    """`Blended` with constants, which are in no checkpoint and no artifact.

    alpha: a row for every visit after the first, with one value for each of `layers`. Raises ValueError when the plans
    repeat other layers, or more often.
    """

    def __init__(self, plans: Mapping[str, LayerPlan], layers: list[int], alpha: list[list[float]]) -> None:
        super().__init__(plans)
        self._check(layers)
        if [len(row) for row in alpha] != [len(layers)] * self.visits:
            raise ValueError(
                f"recurrence.alpha={alpha} must have {self.visits} rows, one for each visit after the first, of "
                f"{len(layers)} values, one for each of layers={layers}"
            )
        self.alpha = alpha

    def forward(self, before: Tensor, after: Tensor, step: Pass, walk: Walk) -> Tensor:
        """[B, T, dim] -> [B, T, dim]."""
        if not step.visit:
            return after
        return before + self.alpha[step.visit - 1][self.column[step.block]] * (after - before)


class Crossing(Recurrence):
    """x <- b_i block(x) + sum_j a_ij c_j on visits after the first of block i, where c_j is what the first visit of
    the repeated block j gave, without gradient (PR 1779). What has not been visited yet is left out of the sum.

    carry_beta [repeated blocks] starts at 1 and carry_alpha [the same, twice] at 0, which is plain recurrence.
    """

    carry_beta: nn.Parameter
    carry_alpha: nn.Parameter

    def __init__(self, plans: Mapping[str, LayerPlan]) -> None:
        super().__init__(plans)
        count = len(self.layers)
        self.declare("carry_beta", (count,), "scalar", constant(1.0))
        self.declare("carry_alpha", (count, count), "scalar", constant(0.0))

    def forward(self, before: Tensor, after: Tensor, step: Pass, walk: Walk) -> Tensor:
        """[B, T, dim] -> [B, T, dim]."""
        if step.block not in self.column:
            return after
        row = self.column[step.block]
        beta, alpha = self.carry_beta[row].to(after.dtype), self.carry_alpha[row].to(after.dtype)
        return _carried(self, after, step, walk, beta, alpha)


class ConstantCrossing(Recurrence):
    """`Crossing` with constants, which are in no checkpoint and no artifact. beta: one for each of `layers`; alpha: a
    row for each, with one for each. Raises ValueError when the plans repeat other layers."""

    def __init__(
        self, plans: Mapping[str, LayerPlan], layers: list[int], beta: list[float], alpha: list[list[float]]
    ) -> None:
        super().__init__(plans)
        self._check(layers)
        if len(beta) != len(layers) or [len(row) for row in alpha] != [len(layers)] * len(layers):
            raise ValueError(
                f"recurrence.beta={beta} must have one value for each of layers={layers}, alpha={alpha} a row of as "
                "many for each"
            )
        self.beta, self.alpha = beta, alpha

    def forward(self, before: Tensor, after: Tensor, step: Pass, walk: Walk) -> Tensor:
        """[B, T, dim] -> [B, T, dim]."""
        if step.block not in self.column:
            return after
        row = self.column[step.block]
        return _carried(self, after, step, walk, self.beta[row], self.alpha[row])


def _carried(
    part: Recurrence, after: Tensor, step: Pass, walk: Walk, beta: Tensor | float, alpha: Tensor | list[float]
) -> Tensor:
    if not step.visit:
        walk.kept[CARRY, step.block] = after.detach()
        return after
    out = beta * after
    for index, layer in enumerate(part.layers):
        if (CARRY, layer) in walk.kept:
            out = out + alpha[index] * walk.kept[CARRY, layer]
    return out


class AddCarry:
    """Gives a model `CarryAdded`."""

    def fit(self, model: "GPT") -> None:
        """ValueError when no plan repeats anything."""
        model.recurrence = CarryAdded(model.plans)


class Blend:
    """Gives a model `Blended`."""

    def __init__(self, *, init: float) -> None:
        self.init = init

    def fit(self, model: "GPT") -> None:
        """ValueError when no plan repeats anything."""
        model.recurrence = Blended(model.plans, self.init)


class FrozenBlend:
    """Gives a model `ConstantBlend`."""

    def __init__(self, *, layers: list[int], alpha: list[list[float]]) -> None:
        self.layers, self.alpha = layers, alpha

    def fit(self, model: "GPT") -> None:
        """ValueError when the plans repeat other layers than these, or at other visits."""
        model.recurrence = ConstantBlend(model.plans, self.layers, self.alpha)


class CrossLayer:
    """Gives a model `Crossing`."""

    def fit(self, model: "GPT") -> None:
        """ValueError when no plan repeats anything."""
        model.recurrence = Crossing(model.plans)


class FrozenCrossLayer:
    """Gives a model `ConstantCrossing`."""

    def __init__(self, *, layers: list[int], beta: list[float], alpha: list[list[float]]) -> None:
        self.layers, self.beta, self.alpha = layers, beta, alpha

    def fit(self, model: "GPT") -> None:
        """ValueError when the plans repeat other layers than these."""
        model.recurrence = ConstantCrossing(model.plans, self.layers, self.beta, self.alpha)
