"""Where the best learning rate lies at several widths, with muP (`optim/mup=width`) and without.

    python benchmarks/mup_widths.py [--study NAME ...] [--widths 64 128 256] [--seeds 42] [key=value ...]

Each point is a short training run of the real Trainer on the embedded corpus; the loss is the mean of the last tenth of
its steps, on text that it has not seen before. Three studies, in each of which learning rates are multiplied by the
factors on a logarithmic grid:

    adam        every parameter on Adam; all learning rates are swept together
    embedding   matrices on Muon; the learning rate of the tied embedding (Adam) is swept
    muon        matrices on Muon; their learning rate is swept

At the first width, the base width, muP changes nothing. Finished points are read from --out and not run again, so
the command may be interrupted. Writes OUT (JSON, with machine and date) and PLOT, prints a table with the best factor.
"""

import argparse
import datetime
import functools
import math
import os
import platform
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pgolf.app.machine import prepare_process

prepare_process()

from pgolf.app import build  # noqa: E402
from pgolf.app.verbs.composing import compose  # noqa: E402
from pgolf.console import Silent  # noqa: E402
from pgolf.distributed import alone  # noqa: E402
from pgolf.errors import UserError  # noqa: E402
from pgolf.files import read_json, write_json  # noqa: E402
from pgolf.optim.adam import AdamW  # noqa: E402
from pgolf.train.clock import BudgetClock  # noqa: E402
from pgolf.workshop import Recipe, chosen_attention  # noqa: E402

Point = dict[str, Any]
RESULTS = Path(__file__).parent / "results" / "mup_widths.json"
PICTURE = Path(__file__).parents[1] / "docs" / "mup-widths.png"
HEAD_DIM, MATRIX_LR_OF_ADAM = 32, 0.004
TITLES = {
    "adam": "everything on Adam: all learning rates",
    "embedding": "matrices on Muon: learning rate of the tied embedding",
    "muon": "matrices on Muon: their learning rate",
}
# Small enough for a core; sequences, recipe and data are those of the default run. Every head has 32 dimensions.
SIZES = [
    "data.tokenizer.vocab_size=1024",
    "model.depth.num_loops=0",
    "train.batch_tokens=512",
    "train.micro_batch_tokens=512",
    "train.momentum.steps=30",
    "train.checkpoint_seconds=1e9",
    "ttt=none",
    "track=none",
]


def scaled_rate(factory: Callable[..., Any], factor: float) -> Callable[..., Any]:
    """The optimiser with `factor` times its learning rate."""
    return functools.partial(factory, lr=factory.keywords["lr"] * factor)  # type: ignore[attr-defined]


def on_adam(optim: Any, factor: float) -> Callable[..., Any]:
    """Every role on Adam."""
    kept = {key: optim.keywords["matrix"].keywords[key] for key in ("weight_decay",)}
    matrix = functools.partial(AdamW, lr=MATRIX_LR_OF_ADAM, betas=(0.9, 0.95), eps=1e-8, **kept)
    others = {role: optim.keywords[role] for role in ("embedding", "scalar", "gate", "head")}
    return functools.partial(
        optim, **{role: scaled_rate(made, factor) for role, made in {**others, "matrix": matrix}.items()}
    )


def one_role(role: str) -> Callable[[Any, float], Callable[..., Any]]:
    """The learning rate of one role alone."""
    return lambda optim, factor: functools.partial(optim, **{role: scaled_rate(optim.keywords[role], factor)})


WIDTHS = {"adam": [64, 128, 256], "embedding": [32, 64, 128], "muon": [32, 64, 128]}  # the first is the base width
STUDIES: dict[str, Callable[[Any, float], Callable[..., Any]]] = {
    "adam": on_adam,
    "embedding": one_role("embedding"),
    "muon": one_role("matrix"),
}


def recipe_of(width: int, base: int, mup: bool, options: argparse.Namespace) -> Recipe:
    """The default recipe at a width, widened by heads."""
    heads = width // HEAD_DIM
    words = [
        f"model.dim={width}",
        f"model.attention.num_heads={heads}",
        f"model.attention.num_kv_heads={max(1, heads // 2)}",
    ]
    words.append(f"paths.data={options.data}")
    words += ["optim/mup=width", f"optim.mup.base_model_dim={base}"] if mup else []
    return build.recipe(compose([*SIZES, f"train.max_steps={options.steps}", *words, *options.words], options).config)


def loss_of(recipe: Recipe, study: str, factor: float, seed: int) -> float | None:
    """Mean loss over the last tenth of the steps; None when training stopped being numbers."""
    dataset = recipe.data.prepare(recipe.data_root, Silent())
    group, losses = alone(), []
    model = recipe.model(recipe.data.vocab_size, seed)
    optimizers = STUDIES[study](recipe.optim, factor)(model)
    _, attention = chosen_attention(recipe, group.device)

    def log(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            losses.append(event["train_loss"])

    with tempfile.TemporaryDirectory() as name:
        places = {"group": group, "clock": BudgetClock(), "console": Silent(), "log": log}
        try:
            recipe.train.run(model, optimizers, dataset, attention, Path(name), **places)
        except UserError as error:  # what the Trainer raises for losses or weights that are not numbers
            print(f"  {error}", flush=True)
            return None
    return statistics.fmean(losses[-max(1, len(losses) // 10) :])


def measure(options: argparse.Namespace) -> list[Point]:
    """Every point of the studies; those that --out has are not run again."""
    points: list[Point] = read_json(options.out)["points"] if options.out.exists() else []
    known = {_key(point) for point in points}
    for study in options.study:
        widths = options.widths or WIDTHS[study]
        for width in widths:
            for mup in (False, True) if width != widths[0] else (False,):
                recipe = recipe_of(width, widths[0], mup, options)
                for seed in options.seeds:
                    for factor in options.factors:
                        point = {"study": study, "width": width, "mup": mup, "seed": seed, "factor": factor}
                        point |= {"steps": options.steps, "words": options.words}
                        if _key(point) in known:
                            continue
                        point["loss"] = loss_of(recipe, study, factor, seed)
                        print(f"{study} width={width} mup={mup} seed={seed} x{factor:g}: {point['loss']}", flush=True)
                        points.append(point)
                        write_json(options.out, {**machine(), "points": points})
    return points


def _key(point: Point) -> tuple[Any, ...]:
    keys = ("study", "width", "mup", "seed", "factor", "steps")
    return (*(point[key] for key in keys), *point["words"])


def machine() -> dict[str, str]:
    """Where and when this was measured."""
    where = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "torch": torch.__version__}
    return {**where, "date": datetime.date.today().isoformat()}


def curve(points: list[Point], study: str, width: int, mup: bool) -> dict[float, float]:
    """Mean loss over seeds by factor; factors at which a seed diverged are left out."""
    chosen = [point for point in points if (point["study"], point["width"], point["mup"]) == (study, width, mup)]
    by_factor: dict[float, list[float | None]] = {}
    for point in chosen:
        by_factor.setdefault(point["factor"], []).append(point["loss"])
    whole = {factor: losses for factor, losses in sorted(by_factor.items()) if None not in losses}
    return {factor: statistics.fmean(loss for loss in losses if loss is not None) for factor, losses in whole.items()}


def best_factor(losses: dict[float, float]) -> float:
    """The factor of least loss: the vertex of the parabola through the best point and its neighbours, in log(factor).

    At the end of the grid there is no parabola and that point is given.
    """
    factors = list(losses)
    at = min(range(len(factors)), key=lambda index: losses[factors[index]])
    if at in (0, len(factors) - 1):
        return factors[at]
    (a, la), (b, lb), (c, lc) = ((math.log2(factors[i]), losses[factors[i]]) for i in (at - 1, at, at + 1))
    above = (b - a) ** 2 * (lb - lc) - (b - c) ** 2 * (lb - la)
    below = (b - a) * (lb - lc) - (b - c) * (lb - la)
    return 2.0 ** (b - 0.5 * above / below)


def table(points: list[Point], studies: dict[str, list[int]]) -> list[dict[str, Any]]:
    """For every study and width: best factor and loss, and the loss at the factor that is best at the base width."""
    rows = []
    for study, widths in studies.items():
        base = curve(points, study, widths[0], False)
        tuned = min(base, key=lambda factor: base[factor])
        for mup in (False, True):
            for width in widths:
                found = curve(points, study, width, mup and width != widths[0])
                best, least = best_factor(found), min(found.values())
                transferred = found.get(tuned)
                loses = None if transferred is None else round(transferred - least, 4)
                rows.append({"study": study, "mup": mup, "width": width, "best_factor": round(best, 3)})
                rows[-1] |= {"loss": round(least, 4), "lost_at_the_base_widths_best": loses}
    return rows


def draw(points: list[Point], studies: dict[str, list[int]], path: Path) -> None:
    """Two panels a study, loss over factor: without muP, with muP; the best of each width is marked."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(len(studies), 2, figsize=(9, 3.1 * len(studies)), sharey="row", squeeze=False)
    for row, (study, widths) in zip(grid, studies.items(), strict=True):
        colours = plt.get_cmap("viridis")([index / len(widths) for index in range(len(widths))])
        for axes, mup in zip(row, (False, True), strict=True):
            for width, colour in zip(widths, colours, strict=True):
                found = curve(points, study, width, mup and width != widths[0])
                axes.plot(list(found), list(found.values()), "o-", color=colour, label=f"width {width}", markersize=4)
                axes.axvline(best_factor(found), color=colour, linestyle=":", linewidth=1.2)
            axes.set_xscale("log", base=2)
            axes.set_title(f"{TITLES[study]}\n{'with' if mup else 'without'} muP", fontsize=9)
            axes.set_xlabel("factor on the learning rate")
            axes.grid(alpha=0.25)
        least = min(point["loss"] for point in points if point["study"] == study and point["loss"] is not None)
        row[0].set_ylim(least - 0.1, least + 1.1)
        row[0].set_ylabel("training loss (nats a token)")
        row[0].legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    """Measure what is missing, print the table, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="key=value", help="overrides, as for `pgolf`")
    parser.add_argument("--study", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    parser.add_argument("--widths", nargs="+", type=int, help="the first is the base width (default: three a study)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42])
    parser.add_argument("--factors", nargs="+", type=float, default=[0.125, 0.25, 0.5, 1.0, 2.0, 4.0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--data", type=Path, default=Path("datasets"), help="folder of prepared data")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--plot", type=Path, default=PICTURE)
    options = parser.parse_args()
    options.config_dir, options.config_path, options.config_name = None, None, "config"
    if wrong := [width for width in options.widths or [] if width % HEAD_DIM]:
        parser.error(f"--widths {wrong[0]}: widths are multiples of {HEAD_DIM}, the size of a head")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    points = measure(options)
    studies = {study: options.widths or WIDTHS[study] for study in STUDIES if study in options.study}
    rows = table(points, studies)
    for row in rows:
        print(row)
    stored = read_json(options.out)
    others = [row for row in stored.get("table", []) if row["study"] not in options.study]
    write_json(options.out, {**stored, "table": [*others, *rows]})
    draw(points, studies, options.plot)
    print(f"{options.out} and {options.plot} are written")


if __name__ == "__main__":
    main()
