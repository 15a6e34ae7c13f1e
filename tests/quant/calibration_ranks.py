"""Started by test_calibration under torchrun: the calibration of two processes, written by the first."""

import sys
from pathlib import Path

import torch

from pgolf import distributed
from pgolf.app.machine import leave
from tests.quant.test_calibration import gathered, texts


def main(directory: Path) -> None:
    group = distributed.join()
    found = {name: gathered(text, directory, group) for name, text in texts().items()}
    everyone = group.gather({name: {key: one.hessian for key, one in known.items()} for name, known in found.items()})
    if group.leads:
        torch.save(found, directory / "found.pt")
        torch.save(everyone, directory / "everyone.pt")
    group.barrier()
    group.close()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
    leave(0)
