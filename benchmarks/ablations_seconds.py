"""Seconds of the options of benchmarks/ablations.py as ratios, option and base side by side in one process.

Training: STEPS steps of a budget of as many, so that what begins at a part of the budget begins at that part.
Quantising and scoring: of weights that the base has trained. Four times, in the order base, option, option, base; again
where the two of a side differ by more than a tenth, for then the machine did something else, at most ATTEMPTS times.
"""

import copy
import multiprocessing
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgolf.files import read_json, write_json

if TYPE_CHECKING:
    from pgolf.workshop import Recipe, Workshop

STEPS = 30
ATTEMPTS, AGREEMENT = 3, 1.1
Work = Callable[["Recipe", Path, Path], float]


def measure(studies: Sequence[Any], source: Path, path: Path, jobs: int) -> int:
    """Measure what `path` does not hold yet, each study against its base; gives the exit status.

    source: the directory of a finished run of the base; path: JSON, {name: {"ratio", "base", "option"}}.
    """
    found: dict[str, Any] = read_json(path) if path.is_file() else {}
    waiting = [study for study in studies if study.name not in found]
    failed = 0
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(side_by_side, study, source): study for study in waiting}
        for done, future in enumerate(as_completed(futures), 1):
            name = futures[future].name
            if (error := future.exception()) is not None:
                failed += 1
                print(f"{done}/{len(waiting)} {name} FAILED: {error}", flush=True)
                continue
            found[name] = future.result()
            write_json(path, found)
            print(f"{done}/{len(waiting)} {name}: {found[name]['ratio']:.2f}", flush=True)
    return 1 if failed else 0


def side_by_side(study: Any, source: Path) -> dict[str, Any]:
    """Seconds of a study and of what it is compared with."""
    from ablations import BASE

    from pgolf.app import build
    from pgolf.app.compose import composer

    work = {"trained": training, "requantised": quantising, "scored again": scoring}[study.kind]
    with composer() as made:
        configs = [made.jobs([*BASE, *study.needs, *more], False)[0].config for more in ((), study.overrides)]
    for _ in range(ATTEMPTS):
        seconds: tuple[list[float], list[float]] = ([], [])
        for side in (0, 1, 1, 0):
            with tempfile.TemporaryDirectory() as folder:
                seconds[side].append(work(build.recipe(configs[side]), source, Path(folder)))
        if all(max(one) < AGREEMENT * min(one) for one in seconds):
            break
    return {
        "ratio": statistics.mean(seconds[1]) / statistics.mean(seconds[0]),
        "base": seconds[0],
        "option": seconds[1],
        "agree": all(max(one) < AGREEMENT * min(one) for one in seconds),
    }


def training(recipe: "Recipe", source: Path, folder: Path) -> float:
    """Seconds of STEPS steps."""
    from pgolf import run

    train = copy.copy(recipe.train)
    train.max_steps, train.max_seconds, train.validate_every, train.early_stop = STEPS, None, None, None
    if recipe.quant.qat is not None:
        recipe.quant.qat.min_steps = 1
    return float(run._train(workshop(replace(recipe, train=train), folder))["seconds"])


def quantising(recipe: "Recipe", source: Path, folder: Path) -> float:
    """Seconds from the trained weights to the artifact, without the code."""
    from pgolf import run

    shutil.copy(source / "model.safetensors", folder)
    phases = run._compress(workshop(recipe, folder))["phases"]
    return float(sum(seconds for name, seconds in phases.items() if name != "pack"))


def scoring(recipe: "Recipe", source: Path, folder: Path) -> float:
    """Seconds of the final score."""
    from pgolf.quant.container import load
    from pgolf.scoring import score

    shop = workshop(recipe, folder)
    model = shop.model_with(load(source / "artifact.pgolf")[0])
    began = time.perf_counter()
    score(shop, "final", model, recipe.ttt)
    return time.perf_counter() - began


def workshop(recipe: "Recipe", folder: Path) -> "Workshop":
    """A run without words or record in `folder`."""
    from pgolf.console import Silent
    from pgolf.distributed import alone
    from pgolf.record import Untracked
    from pgolf.workshop import Workshop

    return Workshop(recipe, {}, folder, alone(), Silent(), Untracked())
