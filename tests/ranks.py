"""Runs a program in several processes that find each other as under torchrun:
`python -m tests.ranks WORLD_SIZE PROGRAM [ARGUMENT ...]`.

All of them are copies of one process that has imported torch and pgolf, which takes longer than what the programs do.
"""

import os
import runpy
import signal
import sys

import torch._dynamo
from torch.distributed import TCPStore

from pgolf.app import signals
from tests import support
from tests.train.loss import made

WITH_IMPORTS = (support, made, torch._dynamo)  # of what programs import themselves, and torch for its optimisers


def rank(number: int, world_size: int, port: int, program: str) -> None:
    """Be one rank and end the process; an error ends it with its traceback."""
    signals.die_with_parent()
    name = str(number)
    os.environ |= {"RANK": name, "LOCAL_RANK": name, "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    os.environ["MASTER_PORT"] = os.read(port, 16).decode()
    runpy.run_path(program, run_name="__main__")
    sys.exit(0)


def main(world_size: int, program: str) -> int:
    """Start the ranks and wait; the first that fails ends the others. Gives the exit status."""
    pipes = [os.pipe() for _ in range(world_size)]
    children = []
    for number, (reader, _) in enumerate(pipes):
        child = os.fork()
        if child == 0:
            rank(number, world_size, reader, program)
        children.append(child)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # its thread is not there in a copy
    for _, writer in pipes:
        os.write(writer, str(store.port).encode())
    while children:
        child, status = os.wait()
        children.remove(child)
        if status:
            for other in children:
                os.kill(other, signal.SIGKILL)
            return 1
    return 0


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    sys.exit(main(int(sys.argv.pop(0)), sys.argv[0]))
