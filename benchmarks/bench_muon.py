"""A Muon step on the full-size matrices of PR 1736 against torch.optim.Muon, alternating in one process.

Prints one JSON line: seconds of a step (medians), and torch / ours for each variant of ours (over 1: ours is faster;
bf16_fast rounds where torch's does, `gram` is newton_schulz=gram). On a CPU the seconds are those that this process
computed, so that what else the machine does hardly counts. `--threads N` sets the threads of both,
`--layers N` makes a smaller set, `--device cuda` measures a GPU.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from pgolf.app.machine import prepare_process

prepare_process()

from pgolf.optim.muon import Muon  # noqa: E402

ROUNDS = 7
VARIANTS = {
    "bf16_fast gram": {"precision": "bf16_fast", "newton_schulz": "gram"},
    "bf16 gram": {"precision": "bf16", "newton_schulz": "gram"},
    "bf16_fast": {"precision": "bf16_fast"},
    "bf16_iteration": {"precision": "bf16_iteration"},
    "bf16": {"precision": "bf16"},
    "auto": {"precision": "auto"},
    "auto gram": {"precision": "auto", "newton_schulz": "gram"},
}


def shapes(layers: int) -> list[tuple[int, int]]:
    """q, o, k, v, up and down of every layer: 66 matrices at 11 layers of width 512."""
    return [(512, 512)] * 2 * layers + [(256, 512)] * 2 * layers + [(2048, 512)] * layers + [(512, 2048)] * layers


def make_parameters(layers: int, device: str) -> list[torch.nn.Parameter]:
    """The same weights and gradients every time."""
    generator = torch.Generator().manual_seed(0)
    parameters = []
    for shape in shapes(layers):
        parameter = torch.nn.Parameter(torch.randn(shape, generator=generator).mul_(0.02).to(device))
        parameter.grad = torch.randn(shape, generator=generator).mul_(0.01).to(device)
        parameters.append(parameter)
    return parameters


def seconds(step: Callable[[], None], device: str) -> float:
    """Time of one step: of the processors on a CPU, of the clock on a GPU."""
    if device == "cpu":
        begun = time.process_time()
        step()
        return time.process_time() - begun
    torch.cuda.synchronize()
    begun = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - begun


def main() -> None:
    """Alternate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--layers", type=int, default=11)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = {"lr": 0.026, "momentum": 0.95, "weight_decay": 0.095, "nesterov": True}
    theirs = make_parameters(options.layers, options.device)
    steps: dict[str, Callable[[], None]] = {"torch": torch.optim.Muon(theirs, **settings, ns_steps=5).step}
    models = {}
    same = {**settings, "row_normalise": False, "newton_schulz_steps": 5, "coefficients": "stock"}
    for name in options.variants:
        models[name] = make_parameters(options.layers, options.device)
        steps[name] = Muon(models[name], **same, **VARIANTS[name]).step
    for step in steps.values():  # the first step warms up
        step()
    start = make_parameters(options.layers, options.device)
    moved = torch.cat([(x - y).flatten() for x, y in zip(theirs, start, strict=True)]).norm()
    distances = {}
    for name, model in models.items():  # all did the same work
        apart = torch.cat([(x - y).flatten() for x, y in zip(theirs, model, strict=True)]).norm()
        distances[name] = round(float(apart / moved), 4)
        if apart > 0.06 * moved:
            raise SystemExit(f"{name} ends {distances[name]:.3f} of a step away from torch's")
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            times[name].append(seconds(step, options.device))
    medians = {name: statistics.median(found) for name, found in times.items()}
    ratios = {
        name: round(statistics.median(b / a for a, b in zip(times[name], times["torch"], strict=True)), 3)
        for name in options.variants
    }
    best = {name: round(min(times["torch"]) / min(times[name]), 3) for name in options.variants}
    print(
        json.dumps(
            {
                "torch_over_ours": ratios,
                "torch_over_ours_of_the_fastest_steps": best,
                "seconds": {name: round(value, 4) for name, value in medians.items()},
                "distance_from_torchs_step": distances,
                "matrices": len(start),
                "threads": options.threads,
                "device": options.device,
                "rounds": ROUNDS,
            }
        )
    )


if __name__ == "__main__":
    main()
