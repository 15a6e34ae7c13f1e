"""How long a checkpoint holds training up, as a part of the time between two (`train.checkpoint_seconds`).

    python benchmarks/bench_checkpoint.py [--rounds N] [--directory DIR] [key=value ...]

Two states, of the default run and of a run of full size (`scale=full`). Prints a line of JSON each: bytes; seconds that
`save` holds the loop, and those of them that the processor computed (less on a busy machine); seconds until the file is
on disk; seconds that work beside the writing thread loses by it (zero when nothing is written in a thread); what
training waits for as a part of checkpoint_seconds. The promise is 1 %. With other words, their state alone.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from pgolf.app.machine import prepare_process

prepare_process()

from pgolf.app import build  # noqa: E402
from pgolf.app.verbs.composing import compose  # noqa: E402
from pgolf.optim.muon import Muon  # noqa: E402
from pgolf.train.checkpoint import Checkpoints  # noqa: E402

WORK = 256  # side of the matrices that are multiplied beside the writer


def state_of(recipe) -> dict[str, object]:
    """What training would hand over: model, optimisers and averages, of the sizes that they have."""
    model = recipe.model(recipe.data.vocab_size, recipe.seed)
    optimizers, average = recipe.optim(model), recipe.train.averaging(model)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    for optimizer in optimizers:
        if not isinstance(optimizer, Muon):  # whose state is as large before its first step
            optimizer.step()
    optimizers.zero_grad()
    return {"model": model.state_dict(), "optimizers": optimizers.state_dict(), "average": average.state_dict()}


def worked(seconds: float) -> float:
    """Products of matrices a second, over so many seconds."""
    a, count = torch.randn(WORK, WORK), 0
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        a @ a
        count += 1
    return count / (time.perf_counter() - begun)


def measure(words: list[str], options: argparse.Namespace) -> dict[str, object]:
    """The figures of one configuration, medians over rounds."""
    recipe = build.recipe(compose(words, options).config)
    state, rows = state_of(recipe), []
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        made = Checkpoints(Path(name), keep=recipe.train.checkpoints_kept)
        for _ in range(options.rounds + 1):  # the first makes the files
            begun, computed = time.perf_counter(), time.thread_time()
            made.save(state)
            held, computed = time.perf_counter() - begun, time.thread_time() - computed
            made.close()
            rows.append((held, time.perf_counter() - begun, computed))
        held, written, computed = (statistics.median(row[column] for row in rows[1:]) for column in (0, 1, 2))
        beside = max(0.2, written - held)
        alone, lost = worked(beside), []
        for _ in range(options.rounds if written > 2 * held else 0):
            made.save(state)
            lost.append(beside * max(0.0, 1.0 - worked(beside) / alone))
            made.close()
        size = made.path.stat().st_size
    slower = statistics.median(lost) if lost else 0.0
    every = recipe.train.checkpoint_seconds
    return {
        "words": words,
        "bytes": size,
        "holds_seconds": round(held, 4),
        "holds_processor_seconds": round(computed, 4),
        "written_after_seconds": round(written, 4),
        "lost_beside_the_thread_seconds": round(slower, 4),
        "checkpoint_seconds": every,
        "part_of_training": round((held + slower) / every, 5),
        "threads": torch.get_num_threads(),
        "rounds": options.rounds,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="key=value", help="overrides, as for `pgolf`")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="where to write (default: the folder for temporary files)")
    options = parser.parse_args()
    options.config_dir, options.config_path, options.config_name = None, None, "config"
    for words in [options.words] if options.words else [[], ["experiment=pr1855", "scale=full"]]:
        print(json.dumps(measure(words, options)), flush=True)


if __name__ == "__main__":
    main()
