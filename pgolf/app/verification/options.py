"""Whether every option of every group composes, and does something in a training step."""

import argparse
from collections.abc import Iterator
from typing import Any

from pgolf.app import build
from pgolf.app.check import problems_of
from pgolf.app.compose import Job, composer, config_directory, resolve_directory
from pgolf.app.console import Screen
from pgolf.app.heads import company
from pgolf.app.plain import NO_VALUE_GIVEN
from pgolf.app.verification.pair import random_loss, state_hash
from pgolf.digest import config_hash
from pgolf.errors import UserError

QUIET_GROUPS = ("hydra", "size", "launch", "track")
STEPPED = ("seed", "data", "model", "optim", "quant")
"""Root keys that a training step on random tokens reads."""


def try_all(screen: Screen, options: argparse.Namespace) -> int:
    """Try every option at mini scale and say how each fares; gives how many fail."""
    failed, number = 0, 0
    known: dict[str, list[str]] = {}
    for title, job in _every_option(options):
        if job is None:
            screen.say(f"  --    {title}: not tried, the part that the default configuration chooses has no such group")
            continue
        if job.unresolved and all(message == NO_VALUE_GIVEN for _, message in job.unresolved):
            needs = ", ".join(f"{key}=..." for key, _ in job.unresolved)
            screen.say(f"  --    {title}: not tried, it needs {needs}")
            continue
        number += 1
        problems = problems_of(job)
        if not problems:
            key = config_hash({name: job.config[name] for name in STEPPED if name in job.config})
            problems = known[key] if key in known else known.setdefault(key, step(job))
        failed += bool(problems)
        screen.say(f"  {'FAIL' if problems else 'ok  '}  {title}")
        for problem in problems:
            screen.say(f"        {problem}")
    screen.say(f"{number} options, {failed} failed.")
    return failed


def _every_option(options: argparse.Namespace) -> Iterator[tuple[str, Job | None]]:
    with composer(options.config_dir, resolve_directory(options.config_path), options.config_name) as made:
        groups = made.groups()
        for group, names in groups.items():
            if group.partition("/")[0] in QUIET_GROUPS:
                continue
            key = made.placed(group)
            for name in names:
                file = config_directory() / group / f"{name}.yaml"
                if not made.has(group):
                    yield f"{group}={name}", None
                    continue
                chosen = [f"{key}={name}", *(company(file) if file.is_file() else ())]
                yield " ".join(chosen), made.jobs([*chosen, *([] if group == "scale" else ["scale=mini"])], False)[0]


def step(job: Job) -> list[str]:
    """One training step of the job's model on random tokens; at full scale none."""
    if "scale=full" in job.overrides:
        return []
    import torch

    recipe = build.recipe(job.config)
    model = recipe.model(recipe.data.vocab_size, recipe.seed)
    optimizers = recipe.optim(model)
    before = state_hash(model)
    loss = random_loss(model, recipe.data.vocab_size)
    loss.backward()
    optimizers.step()
    if not torch.isfinite(loss):
        return [f"the loss of a random batch is {loss.item()}"]
    if state_hash(model) == before:
        return ["a training step changed no parameter"]
    return _reach(recipe.quant, model)


def _reach(quant: Any, model: Any) -> list[str]:
    """What quantisation does to a model that is still trained or run: a rotation inside it changes no logit, rounding
    for training changes weights."""
    from pgolf.quant.compress import Compressor

    if not isinstance(quant, Compressor):
        return []
    try:
        if quant.rotation is not None:
            quant.rotation.enter(model)
        rounding = quant.training(model, lambda names, with_moments: {})
    except UserError as error:
        return [str(error)]
    if rounding is None:
        return []
    before = state_hash(model)
    with rounding.applied(rounding.min_steps):  # by then what comes by steps has come
        rounded = state_hash(model)
    return [] if rounded != before == state_hash(model) else ["rounding changed no weight, or left it changed"]
