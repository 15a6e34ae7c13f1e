"""An optional part that is not chosen is not there: same weights, same losses, same digest, to the last bit.

The groups are found in conf: every none.yaml that names the absent part.
"""

import copy
import functools
import hashlib
from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch

from pgolf.app.build import build
from pgolf.app.compose import Job
from pgolf.data.loaders import Batch
from pgolf.digest import ABSENT_TARGET, digest
from pgolf.kernels.attend import select
from pgolf.model.gpt import GPT
from pgolf.train.loop import batch_loss
from tests.shipped import job

from .conftest import CHECKOUT, TINY

CONF = CHECKOUT / "conf"
GROUPS = sorted(
    path.parent.relative_to(CONF).as_posix()
    for path in CONF.rglob("none.yaml")
    if ABSENT_TARGET in path.read_text(encoding="utf-8")
)
OPTIONS = [
    (group, path.stem)
    for group in GROUPS
    for path in sorted((CONF / group).glob("*.yaml"))
    if path.stem != "none" and group.startswith("model/")
]
ABOUT = {
    "model/embedding": ("tok_emb.weight",),
    "model/matrix_init": ("*.attn.c_?.weight", "*.mlp.fc.weight"),
    "model/skips": ("skip_weights",),
    "model/equilibrium": ("blocks.*.proj.weight",),  # the solved block's do not start at zero
    "model/state_space": ("blocks.*.attn.*", "blocks.*.state_space.*"),
    "model/legendre": ("series.*", "blocks.*.attn.*.weight", "blocks.*.mlp.*.weight"),
}
"""Parameters whose initial values, shapes or presence the options of a group are about."""
VOCABULARY, SEED = 300, 7


def compose(*overrides: str) -> Job:
    """One composed job of the tiny configuration."""
    return job(*TINY, "data.source.paths=[unused]", *overrides)


def with_option(group: str, option: str) -> dict[str, Any]:
    """The configuration with a group's option, on the first choice of the root group that has the group."""
    return copy.deepcopy(_with_option(group, option))


@functools.cache
def _with_option(group: str, option: str) -> dict[str, Any]:
    root = group.partition("/")[0]
    parents = dict.fromkeys((root, group.rpartition("/")[0]))
    choices = [()] + [(f"{one}={path.stem}",) for one in parents for path in sorted((CONF / one).glob("*.yaml"))]
    for choice in choices:
        job = compose(*choice, f"{group}={option}")
        if not job.refusals:
            return job.config
    raise AssertionError(f"nothing in {root} takes {group}={option}")


def node_of(config: dict[str, Any], group: str) -> tuple[dict[str, Any], str]:
    """The mapping that holds the group's node, and its key."""
    *parents, key = group.split("/")
    for parent in parents:
        config = config[parent]
    return config, key


def made(config: dict[str, Any]) -> GPT:
    """The model of a configuration."""
    model: GPT = build(config["model"], "model")(VOCABULARY, SEED)
    return model


def state_hash(model: GPT) -> str:
    """SHA-256 of names, shapes and bytes of the state dict."""
    total = hashlib.sha256()
    for name, value in model.state_dict().items():
        total.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode() + value.numpy().tobytes())
    return total.hexdigest()


def losses(model: GPT, config: dict[str, Any]) -> list[float]:
    """Three training steps on a fixed batch of two documents, the last with recurrence; then the loss once more."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(2, VOCABULARY, (1, 65), generator=generator)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], torch.tensor([0, 40, 64], dtype=torch.int32))
    optimizers = build(config["optim"], "optim")(model)
    device = torch.device("cpu")
    _, attention = select("sdpa", device)
    found = []
    for step in range(4):
        if step == 2:
            model.set_plan("looped")
        optimizers.zero_grad()
        loss, _ = batch_loss(model, batch, attention, device, 64)
        found.append(float(loss.detach()))
        if step < 3:
            loss.backward()
            optimizers.schedule(1.0, 0.9)
            optimizers.step()
    assert len(set(found)) == 4
    return found


def test_there_are_optional_parts() -> None:
    assert {"model/attention/gate", "model/attention/exclude", "model/smear", "model/lanes", "model/softcap"} <= set(
        GROUPS
    )
    assert len(OPTIONS) >= 12


@pytest.mark.parametrize("group", GROUPS)
def test_a_part_that_is_absent_leaves_no_trace(group: str) -> None:
    absent = with_option(group, "none")
    parent, key = node_of(absent, group)
    assert parent[key] == {"_target_": ABSENT_TARGET}
    without = copy.deepcopy(absent)
    parent, key = node_of(without, group)
    parent[key] = None  # built by hand, with no part and no node
    one, other = made(absent), made(without)
    assert state_hash(one) == state_hash(other)
    assert losses(one, absent) == losses(other, without)
    assert state_hash(one) == state_hash(other)
    del parent[key]
    assert digest(absent) == digest(without)
    assert not any(key in name.split(".") for name in one.state_dict())


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_a_part_that_is_added_moves_no_other_initial_value(group: str, option: str) -> None:
    absent, present = with_option(group, "none"), with_option(group, option)
    assert digest(absent) != digest(present)
    before, after = (
        {name: value for name, value in made(config).state_dict().items() if not is_about(group, name)}
        for config in (absent, present)
    )
    shared = before.keys() & after.keys()
    # a part adds parameters, takes some away, or puts others in the place of a matrix
    gone = {name for name in before.keys() - after.keys() if not any(_inside(name, other) for other in after)}
    assert not gone or shared == after.keys()
    moved = [name for name in shared if before[name].shape != after[name].shape or not before[name].equal(after[name])]
    assert moved == []


def is_about(group: str, name: str) -> bool:
    """Whether the options of a group are about a parameter's own initial value."""
    return any(fnmatchcase(name, pattern) for pattern in ABOUT.get(group, ()))


def _inside(weight: str, name: str) -> bool:
    """Whether a parameter belongs to what may have replaced the module of a weight."""
    return name.startswith(weight.removesuffix("weight")) and name != weight


def test_a_new_absent_node_changes_no_digest() -> None:
    config = compose().config
    for holder in (config, config["model"], config["model"]["attention"], config["quant"], config["ttt"]["lora"]):
        changed = copy.deepcopy(config)
        target = next(found for found in _mappings(changed) if found == holder)
        target["new_part"] = {"_target_": ABSENT_TARGET}
        assert changed != config and digest(changed) == digest(config)


def _mappings(node: Any) -> list[dict[str, Any]]:
    below = [found for value in node.values() for found in _mappings(value)] if isinstance(node, dict) else []
    return [node, *below] if isinstance(node, dict) else []
