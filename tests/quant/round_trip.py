"""Ternary MLPs beside int6 attention, trained with rounding that grows; also started under torchrun by its test."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgolf import distributed
from pgolf.app.machine import leave
from pgolf.distributed import Group
from pgolf.model.gpt import GPT
from pgolf.model.roles import ROLES, parameter_roles
from pgolf.quant import container
from pgolf.quant.compress import Compressor, Rule
from pgolf.quant.qat import Ramp, WeightRounding
from pgolf.quant.schemes import Float32, Int8Rows, PercentileRows, Ternary
from tests.support import tiny_model

TOKENS = torch.randint(64, (4, 33), generator=torch.Generator().manual_seed(5))


def ramp(**changes: Any) -> Ramp:
    """From the second step on, over three steps."""
    return Ramp(**{"from_step": 1, "ramp_steps": 3, "min_steps": 4, "roles": list(ROLES), **changes})


def compressor(**changes: Any) -> Compressor:
    """As quant=ternary_mlp, with small groups."""
    settings: dict[str, Any] = {
        "matrix": PercentileRows(bits=6, percentiles=[1.0], least_clip=0.0),
        "embedding": Int8Rows(),
        "head": Int8Rows(),
        "scalar": Float32(),
        "gate": Float32(),
        "coder": "rans",
        "calibration_batches": 1,
        "min_quantised_elements": 1,
        "rules": {"mlp": Rule(pattern="*.mlp.*", scheme=Ternary(group_size=48, packing="symbols", scale="float32"))},
        "qat": ramp(),
    }
    return Compressor(**{**settings, **changes})


def rounding_of(model: GPT, tool: Compressor) -> WeightRounding:
    """What the tool makes of `model` while it is trained."""
    made = tool.training(model, lambda names, moments: {})
    assert made is not None
    return made


def logits(model: GPT) -> Tensor:
    """Of the inputs of TOKENS, with recurrence."""
    model.set_plan("looped")
    with torch.no_grad():
        return model.logits(model(TOKENS[:, :-1]))


def trained(model: GPT, rounding: WeightRounding, group: Group, steps: int = 6) -> None:
    """Plain gradient descent; each process has rows of its own."""
    rows = TOKENS[group.rank :: group.world_size]
    for step in range(steps):
        model.zero_grad()
        with rounding.applied(step):
            scores = model.logits(model(rows[:, :-1]))
            torch.nn.functional.cross_entropy(scores.flatten(0, 1), rows[:, 1:].flatten()).backward()
        with torch.no_grad():
            used = [one for one in model.parameters() if one.grad is not None]
            group.mean_([one.grad for one in used if one.grad is not None])
            for one in used:
                assert one.grad is not None
                one.add_(one.grad, alpha=-0.1)


def exported(model: GPT, tool: Compressor, path: Path, group: Group) -> GPT:
    """What every process loads from the file that the first writes."""
    if group.leads:
        tool.compress(model.state_dict(), parameter_roles(model), {}, {}, path)
    group.barrier()
    other = tiny_model(seed=9)
    other.load_state_dict(container.load(path)[0])
    return other


def main(directory: Path) -> None:
    """Train, export and load with two processes; the first writes what all of them found."""
    group = distributed.join()
    model, tool = tiny_model(scramble=0.2), compressor()
    rounding = rounding_of(model, tool)
    trained(model, rounding, group)
    with rounding.applied(5):
        seen = logits(model)
    loaded = exported(model, tool, directory / "artifact.pgolf", group)
    state = {name: value.clone() for name, value in loaded.state_dict().items()}
    found = group.gather({"seen": seen, "loaded": logits(loaded), "weights": state})
    if group.leads:
        torch.save(found, directory / "found.pt")
    group.barrier()
    group.close()


trained_alone = partial(trained, group=Group(0, 1, torch.device("cpu")))
exported_alone = partial(exported, group=Group(0, 1, torch.device("cpu")))

if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
    leave(0)
