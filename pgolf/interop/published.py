"""Parameter names of the record scripts and of the models here.

A part keeps the published name of its parameters; here the name of the part comes before it. Scripts that keep their
matrices in banks name them so in the state dicts that they unbank for quantisation.
"""

from collections.abc import Mapping

from torch import Tensor

# (here, published): the beginning of a name, or with a leading dot, what follows the block
NAMES = (
    ("smear.smear_", "smear_"),
    ("lanes.parallel_", "parallel_"),
    ("lanes.lane_merge", "lane_merge"),
    ("softcap.softcap_", "softcap_"),
    ("head.weight", "lm_head.weight"),
    (".attn.gate.attn_gate_", ".attn.attn_gate_"),
    (".attn.exclude.xsa_alpha", ".attn.xsa_alpha"),
)


def _renamed(name: str, old: str, new: str) -> str:
    if old.startswith("."):
        return name.replace(old, new, 1)
    return new + name.removeprefix(old) if name.startswith(old) else name


def to_published(name: str) -> str:
    """The name that the record scripts give to the parameter `name` of a model here."""
    for ours, published in NAMES:
        name = _renamed(name, ours, published)
    return name


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An (unbanked) state dict of a record script under the names here. Unknown names stay as they are."""
    found = {}
    for name, value in state.items():
        for ours, published in NAMES:
            name = _renamed(name, published, ours)
        found[name] = value
    return found
