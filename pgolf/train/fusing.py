"""Fused kernels put to use in a run: given to what can use them, and said where that is not everything."""

from collections.abc import Iterable, Iterator

from pgolf.kernels.fused.kernels import Fused
from pgolf.model.gpt import GPT
from pgolf.model.head import SoftCap
from pgolf.model.mlp import Mlp
from pgolf.model.smear import SmearGate
from pgolf.optim.roles import RoleOptimizers


def put_to_use(fused: Fused, model: GPT, optimizers: RoleOptimizers) -> list[str]:
    """Give the optimisers their kernel, and compile it; the others come with the context of each forward.

    Gives sentences for people, one for each kernel that some part of the run cannot use.
    """
    shares = dict(_shares(fused, model))
    if fused.symmetric is not None:
        matrices = optimizers.assignment.get("matrix", [])
        shares["symmetric"] = (optimizers.use(fused.symmetric), len(matrices), "matrices of optim.matrix")
    return [
        f"fused kernel {name}: in {used} of {places} {what}; the others compute it by plain operations"
        for name, (used, places, what) in shares.items()
        if used < places or not places
    ]


def _shares(fused: Fused, model: GPT) -> Iterator[tuple[str, tuple[int, int, str]]]:
    """For each kernel of the forward how many places use it, how many there are, and what they are."""
    if fused.mlp is not None:
        yield "mlp", (*_counted(one.fusable for one in model.modules() if isinstance(one, Mlp)), "MLPs")
    if fused.norm_rotary is not None:
        yield "norm_rotary", (*_counted(one.fusable for one in model.attentions), "attentions")
    if fused.smear_norm is not None:
        yield "smear_norm", (int(isinstance(model.smear, SmearGate)), 1, "places behind the embedding")
    if fused.cross_entropy is not None:
        yield "cross_entropy", (int(model.softcap is None or isinstance(model.softcap, SoftCap)), 1, "softcaps")


def _counted(able: Iterable[bool]) -> tuple[int, int]:
    """How many are true, and how many there are."""
    known = list(able)
    return sum(known), len(known)
