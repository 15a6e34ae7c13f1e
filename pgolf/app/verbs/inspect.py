"""`pgolf inspect [overrides]`: what a configuration makes, without training it."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from pgolf.app import build
from pgolf.app.console import Screen
from pgolf.app.verbs import converged, inspect_artifact
from pgolf.app.verbs.composing import compose, parser, refuse_words, take
from pgolf.app.verbs.tables import text_table
from pgolf.digest import digest, group_digest
from pgolf.errors import ConfigError
from pgolf.report.architecture import Visit

if TYPE_CHECKING:
    from pgolf.run import Recipe

DESCRIPTION = """\
Show the layer plans, what a token costs, the parameters by role and by tensor, the expected bytes of
the artifact, and the schedules of a configuration. Nothing is trained and no data is read.
With artifact=FILE (or a run directory): where the bytes of an artifact are, and how near its coder
came to the entropy of the symbols.
With run=DIR --converged: the learned gains, scales and gates of a trained run by layer, and overrides
that start the next run where they ended.

examples:
  pgolf inspect scale=full
  pgolf inspect experiment=pr1736 --plot
  pgolf inspect artifact=runs/default-1a2b3c4d-seed42 --plot
  pgolf inspect run=runs/default-1a2b3c4d-seed42 --converged"""
MOMENTS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)  # parts of the training budget
FINE = [index / 400 for index in range(401)]


def main(arguments: list[str]) -> int:
    """Run the verb; gives the exit status."""
    made = parser("inspect", DESCRIPTION, "[key=value ...] [--plot [FILE.png]]")
    made.add_argument(
        "--plot",
        metavar="FILE.png",
        nargs="?",
        const="",
        help="draw plans, schedules and bytes (default: architecture-NAME.png here; artifact-NAME.png of an artifact)",
    )
    made.add_argument("--converged", action="store_true", help="with run=DIR: where its learned gains ended")
    options = made.parse_args(arguments)
    words, plot = _separate(options.words, options.plot)
    refuse_words(words)
    artifact, others = take(words, "artifact")
    if artifact is not None:
        return inspect_artifact.show(artifact, others, plot)
    run, others = take(words, "run")
    if options.converged or run is not None:
        if run is None or not options.converged or plot is not None:
            raise ConfigError(["run=DIR and --converged belong together, without --plot"])
        return converged.show(run, others)
    config = compose(words, options).config
    screen, recipe = Screen(), build.recipe(config)
    screen.say(f"digest {digest(config)[:16]}, without the seed {group_digest(config)[:16]}")
    model = _on_meta(recipe)
    screen.tables(_plans(model))
    screen.tables([_costs(recipe, model)])
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    screen.tables(_parameters(recipe, model, shapes))
    screen.tables([_schedules(recipe, list(model.plans))])
    if plot is not None:
        path = Path(plot or f"architecture-{recipe.name}.png")
        screen.say(f"drawn in {_draw(recipe, model, shapes, path)}")
    return 0


def _separate(words: list[str], plot: str | None) -> tuple[list[str], str | None]:
    """The words and the file name: `--plot key=value` is --plot without a name and an override."""
    if plot is not None and "=" in plot:
        return [plot, *words], ""
    if plot and not plot.endswith(".png"):
        raise ConfigError([f"--plot {plot}: expected the name of a .png file, or nothing"])
    return words, plot


def _on_meta(recipe: "Recipe") -> Any:
    import torch

    with torch.device("meta"):
        return recipe.model(recipe.data.vocab_size, recipe.seed)


def visits(model: Any, plan: Any) -> list[Visit]:
    """A plan for people: where each skip comes from and what each lane takes."""
    kept: list[int] = []
    found = []
    for index, row in enumerate(plan.rows()):
        laned, block = row["form"] == "lanes", model.blocks[row["block"]]
        found.append(
            Visit(
                slot=index,
                block=row["block"],
                visit=row["visit"],
                form=row["form"],
                skip_from=kept.pop() if row["pop"] is not None else None,
                skip_lanes=model.lanes.skip_lanes if laned else (),
                writes=model.lanes.writes if laned else ((), ()),
                attends=block.attn is not None,
                state_space=block.state_space is not None,
                own_mlp=row["visit"] > 1 and len(block.repeats) > 0,
                place=row["slot"] if model.vectors is not None and row["slot"] != row["block"] else None,
                evaluations=model.evaluations(row["block"]),
                adapters=row["slot"] if row["slot"] != index else None,
            )
        )
        if row["push"]:
            kept.append(index)
    return found


def _plans(model: Any) -> Iterator[Table]:
    columns = ["slot", "block", "visit", "form", "attention", "MLP", "skip from"]
    for name, plan in model.plans.items():
        yield text_table(f"Layer plan `{name}`", columns, [_visit_row(visit) for visit in visits(model, plan)])


def _visit_row(visit: Visit) -> list[str]:
    """slot, block, visit, form, the lanes that attention and MLP read and write, where a skip comes from and goes; with
    what belongs to the visit instead of the block."""
    routes = ["stream", "stream"]
    source = "" if visit.skip_from is None else f"slot {visit.skip_from}"
    if visit.form == "lanes":
        routes = [f"lane {lane} -> {_lanes(visit.writes[lane])}" for lane in (0, 1)]
        source += f" -> {_lanes(visit.skip_lanes)}" if source else ""
    if not visit.attends:
        routes[0] = f"{routes[0]} (state space)" if visit.state_space else "none"
    if visit.own_mlp:
        routes[1] += " (its own)"
    block = f"{visit.block}" if visit.place is None else f"{visit.block} (vectors of {visit.place})"
    if visit.evaluations > 1:
        block += f" (fixed point, {visit.evaluations} evaluations)"
    slot = f"{visit.slot}" if visit.adapters is None else f"{visit.slot} (adapter slot {visit.adapters})"
    return [slot, block, str(visit.visit), visit.form, *routes, source]


def _lanes(lanes: tuple[int, ...]) -> str:
    return " and ".join(map(str, lanes)) if lanes else "none"


def _costs(recipe: "Recipe", model: Any) -> Table:
    from pgolf.model.flops import flops_per_token

    sequence, batch = recipe.train.sequence_tokens, recipe.train.batch_tokens
    body = []
    for name, plan in model.plans.items():
        flops = flops_per_token(model, plan, sequence)
        parts = (flops.blocks, flops.attention, flops.head, flops.forward, flops.training)
        body.append([name, *(f"{part / 1e6:,.2f}" for part in parts), f"{flops.training * batch / 1e12:,.3f}"])
    columns = ["plan", "blocks", "attention", "head", "forward", "training", f"step of {batch:,} (T)"]
    return text_table(
        f"Floating point operations per token (millions), documents of {sequence:,} tokens", columns, body
    )


def _parameters(recipe: "Recipe", model: Any, shapes: dict[str, tuple[int, ...]]) -> Iterator[Table]:
    from pgolf.model.roles import parameter_roles
    from pgolf.quant.estimate import EXPECTED_ERROR, by_class, by_coder

    roles = parameter_roles(model)
    choices = recipe.quant.chooser.choose(shapes, roles, set(shapes) - set(roles))
    rows = recipe.quant.estimate(shapes, roles)
    by_tensor = {row["tensor"]: row for row in rows}
    dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in model.state_dict().items()}
    yield text_table(
        "Tensors",
        ["tensor", "role", "shape", "trained in", "parameters", "scheme", "bits", "bytes"],
        [
            [name, roles.get(name, ""), " x ".join(map(str, shape)), dtypes[name], *_sizes(by_tensor[name])]
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
    yield text_table(
        "Parameters by role",
        ["role", "tensors", "parameters", "share"],
        [*body, ["all", f"{len(roles):,}", f"{total:,}", ""]],
    )
    body = [[row["role"], str(row["tensors"]), *_sizes(row)] for row in by_class(rows)]
    expected = sum(row["estimated_bytes"] for row in rows)
    yield text_table(
        f"Bytes of the weights, estimated to {EXPECTED_ERROR:.1%} at full scale (the code adds its own)",
        ["class", "tensors", "elements", "scheme", "bits", "bytes"],
        [
            *body,
            ["all", "", "", "", "", f"{expected:,}"],
            *([f"by {coder}", "", "", "", "", f"{size:,}"] for coder, size in by_coder(choices, shapes).items()),
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


def _schedules(recipe: "Recipe", plans: list[str]) -> Table:
    train = recipe.train
    course, steps = train.course(plans), train.max_steps
    body = []
    for position in _positions(train, MOMENTS):
        now = course.at(position)
        by_step = [f"{position.step:,}", f"{now.momentum:.4f}"] if steps else ["", ""]
        scales = [f"{now.lr_scale:.4f}", f"{now.weight_decay_scale:.4f}"]
        sizes = [f"{now.sequence_tokens:,}", f"{now.batch_tokens:,}"]
        body.append([f"{position.fraction:.0%}", by_step[0], scales[0], by_step[1], scales[1], *sizes, now.plan])
    budget = f"{steps:,} steps" if steps else ""
    budget += f"{' or ' if steps and train.max_seconds else ''}{train.max_seconds:,} s" if train.max_seconds else ""
    columns = ["budget", "step", "learning rate x", "momentum", "weight decay x", "sequence", "batch", "plan"]
    return text_table(f"Schedules over {budget}", columns, body)


def _positions(train: Any, moments: Iterable[float]) -> list[Any]:
    """Parts of the budget as positions; without a number of steps they all lie at step 0."""
    from pgolf.optim.schedule import Position

    steps, seconds = train.max_steps or 0, train.max_seconds or 0.0
    return [Position(int(moment * steps), moment, moment * seconds) for moment in moments]


def _curves(train: Any, plans: list[str]) -> dict[str, list[float]]:
    """The schedules that are drawn: the learning rate, and what else changes."""
    course = train.course(plans)
    settings = [course.at(position) for position in _positions(train, FINE)]
    curves = {"learning rate (multiplier)": [now.lr_scale for now in settings]}
    if train.max_steps:
        curves["momentum"] = [now.momentum for now in settings]
    if train.weight_decay is not None:
        curves["weight decay (multiplier)"] = [now.weight_decay_scale for now in settings]
    for name, of_all, stages in (
        ("sequence", train.sequence_tokens, train.context),
        ("batch", train.batch_tokens, train.batch),
    ):
        if stages is not None:
            key = f"{name} (part of {of_all:,} tokens)"
            curves[key] = [getattr(now, f"{name}_tokens") / of_all for now in settings]
    return curves


def _draw(recipe: "Recipe", model: Any, shapes: dict[str, tuple[int, ...]], path: Path) -> Path:
    from pgolf.model.flops import flops_per_token
    from pgolf.model.roles import parameter_roles
    from pgolf.quant.estimate import by_class
    from pgolf.report.architecture import Sketch, architecture

    train, sequence = recipe.train, recipe.train.sequence_tokens
    roles = parameter_roles(model)
    flops = {name: flops_per_token(model, plan, sequence) for name, plan in model.plans.items()}
    parameters = sum(math.prod(shapes[name]) for name in roles)
    sketch = Sketch(
        title=f"{recipe.name}: {parameters:,} parameters",
        plans={name: visits(model, plan) for name, plan in model.plans.items()},
        costs={name: f"{each.forward / 1e6:,.1f} million operations a token forward" for name, each in flops.items()},
        moments=FINE,
        curves=_curves(train, list(model.plans)),
        begins=_begins(train, list(model.plans), FINE),
        sizes={
            f"{row['role']} ({row['scheme']})": row["estimated_bytes"]
            for row in by_class(recipe.quant.estimate(shapes, roles))
        },
        limit=recipe.quant.limit_bytes,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    return architecture(sketch, path)


def _begins(train: Any, plans: list[str], moments: Iterable[float]) -> dict[str, float]:
    """The first moment at which training walks each plan, in that order."""
    found: dict[str, float] = {}
    for moment in moments:
        found.setdefault(_plan_at(train, plans, moment), moment)
    return found


def _plan_at(train: Any, plans: list[str], moment: float) -> str:
    from pgolf.optim.schedule import Position

    name: str = train.activation(plans).at(Position(0, moment))
    return name
