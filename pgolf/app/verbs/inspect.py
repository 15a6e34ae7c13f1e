"""`pgolf inspect [overrides]`: what a configuration makes, without training it."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from pgolf.app import build
from pgolf.app.console import Screen
from pgolf.app.verbs.composing import compose, parser, refuse_words
from pgolf.digest import digest, group_digest
from pgolf.errors import UserError

if TYPE_CHECKING:
    from pgolf.run import Recipe

DESCRIPTION = """\
Show the layer plan, the parameters by role and by tensor, the expected bytes of the artifact, and
the schedules of a configuration. Nothing is trained and no data is read.

examples:
  pgolf inspect scale=full
  pgolf inspect experiment=pr1736 --plot schedules.png"""
MOMENTS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)  # parts of the training budget


def main(arguments: list[str]) -> int:
    """Run the verb; gives the exit status."""
    made = parser("inspect", DESCRIPTION, "[key=value ...] [--plot FILE.png]")
    made.add_argument("--plot", metavar="FILE.png", type=Path, help="draw the schedules into a file")
    options = made.parse_args(arguments)
    refuse_words(options.words)
    config = compose(options.words, options).config
    screen, recipe = Screen(), build.recipe(config)
    screen.say(f"digest {digest(config)[:16]}, without the seed {group_digest(config)[:16]}")
    model = _on_meta(recipe)
    screen.tables(_plans(model))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    screen.tables(_parameters(recipe, model, shapes))
    screen.tables([_schedules(recipe)])
    if options.plot is not None:
        _plot(recipe, options.plot)
        screen.say(f"schedules drawn in {options.plot}")
    return 0


def _on_meta(recipe: "Recipe") -> Any:
    import torch

    with torch.device("meta"):
        return recipe.model(recipe.data.vocab_size, recipe.seed)


def _plans(model: Any) -> Iterator[Table]:
    for name, plan in model.plans.items():
        rows = plan.rows()
        columns = list(rows[0]) if rows else []
        yield _table(f"Layer plan `{name}`", columns, [[_cell(row[key]) for key in columns] for row in rows])


def _parameters(recipe: "Recipe", model: Any, shapes: dict[str, tuple[int, ...]]) -> Iterator[Table]:
    from pgolf.model.roles import parameter_roles
    from pgolf.quant.compress import by_class

    roles = parameter_roles(model)
    rows = recipe.quant.estimate(shapes, roles)
    by_tensor = {row["tensor"]: row for row in rows}
    yield _table(
        "Tensors",
        ["tensor", "role", "shape", "parameters", "scheme", "bits", "bytes"],
        [
            [name, roles.get(name, ""), " x ".join(map(str, shape)), *_sizes(by_tensor[name])]
            for name, shape in shapes.items()
        ],
    )
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, role in roles.items():
        counts[role][0] += 1
        counts[role][1] += by_tensor[name]["elements"]
    total = sum(number for _, number in counts.values())
    body = [
        [role, f"{tensors:,}", f"{number:,}", f"{number / total:.1%}"] for role, (tensors, number) in counts.items()
    ]
    yield _table(
        "Parameters by role",
        ["role", "tensors", "parameters", "share"],
        [*body, ["all", f"{len(roles):,}", f"{total:,}", ""]],
    )
    body = [[row["role"], str(row["tensors"]), *_sizes(row)] for row in by_class(rows)]
    expected = sum(row["estimated_bytes"] for row in rows)
    yield _table(
        "Bytes of the weights, estimated (the code adds its own)",
        ["class", "tensors", "elements", "scheme", "bits", "bytes"],
        [
            *body,
            ["all", "", "", "", "", f"{expected:,}"],
            ["limit", "", "", "", "", f"{recipe.quant.limit_bytes:,}"],
        ],
    )


def _sizes(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['elements']:,}",
        str(row["scheme"]),
        f"{row['bits']:.2f}",
        f"{row['estimated_bytes']:,}",
    ]


def _schedules(recipe: "Recipe") -> Table:
    train = recipe.train
    steps = train.max_steps
    body = []
    for moment in MOMENTS:
        step = int(moment * steps) if steps else None
        momentum = "" if step is None else f"{train.momentum(step):.4f}"
        plan = "looped" if moment >= train.loop_at else "plain"
        body.append(
            [
                f"{moment:.0%}",
                "" if step is None else f"{step:,}",
                f"{train.schedule(moment):.4f}",
                momentum,
                plan,
            ]
        )
    budget = f"{steps:,} steps" if steps else ""
    budget += f"{' or ' if steps and train.max_seconds else ''}{train.max_seconds:,} s" if train.max_seconds else ""
    return _table(f"Schedules over {budget}", ["budget", "step", "learning rate x", "momentum", "plan"], body)


def _plot(recipe: "Recipe", path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError('--plot needs matplotlib: pip install "pgolf[report]".') from error
    train, moments = recipe.train, [index / 400 for index in range(401)]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(moments, [train.schedule(moment) for moment in moments], label="learning rate multiplier")
    if train.max_steps:
        axes.plot(
            moments,
            [train.momentum(int(moment * train.max_steps)) for moment in moments],
            label="momentum",
        )
    axes.axvline(train.loop_at, color="grey", linestyle=":", label="recurrence starts")
    axes.set(xlabel="part of the training budget", ylim=(0, 1.05), title=recipe.name)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _cell(value: object) -> str:
    return "" if value is None or value is False else "yes" if value is True else str(value)


def _table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    table = Table(title=Text(title))
    for index, column in enumerate(columns):
        number = bool(rows) and rows[0][index].replace(",", "").replace(".", "").rstrip("%").isdigit()
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
