"""Training a model of parts that training has to know or leave alone, on any number of ranks. Also a program."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pgolf.app.machine import leave
from pgolf.distributed import Group
from pgolf.model.basis import RandomPlusLowRank
from pgolf.model.gpt import GPT
from pgolf.model.moe import SoftDense
from pgolf.model.phinta import PerBlock
from tests.support import tiny_model
from tests.train.small import losses, train

STEPS = 8


def fitted() -> GPT:
    """Experts with a controller, frozen matrices under attention, a frozen map in every block."""
    experts = partial(
        SoftDense,
        multiple=2.0,
        slope=0.5,
        num_experts=4,
        balance=0.5,
        min_share=0.5,
        max_spread=0.5,
        bias_rate=0.5,
        inject=0.1,
    )
    return tiny_model(
        mlp=experts,
        basis=RandomPlusLowRank(rank=4, patterns=["blocks.*.attn.c_q"]),
        phinta=PerBlock(rank=4, init_scale=0.5),
    )


def made(folder: Path, group: Group) -> dict[str, Any]:
    """What a few steps make of it."""
    averaged, _, events, model = train(folder, group=group, model=fitted(), max_steps=STEPS, batch_tokens=1024)
    return {"losses": losses(events), "events": events, "average": averaged, "weights": dict(model.state_dict())}


def main(folder: Path, out: Path) -> None:
    """On every rank; the leader writes what came of it."""
    from pgolf import distributed

    torch.set_num_threads(1)
    group = distributed.join()
    found = made(folder, group)
    if group.leads:
        torch.save(found, out)
    group.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    leave(0)
