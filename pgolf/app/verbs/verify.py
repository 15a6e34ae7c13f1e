"""`pgolf verify [A B]`: are two configurations the same model; does every option work."""

import argparse
import hashlib
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pgolf.app import build
from pgolf.app.check import problems_of
from pgolf.app.compose import Job, composer, resolve_directory
from pgolf.app.console import Screen
from pgolf.app.plain import NO_VALUE_GIVEN
from pgolf.app.verbs.composing import compose, parser
from pgolf.errors import UserError

if TYPE_CHECKING:
    import torch

DESCRIPTION = """\
With two sets of overrides (each one quoted word; a bare name is an experiment): compare their
models. Equal means the same SHA-256 of the initial state dict, and a loss difference of exactly
zero on a fixed random batch. The exit status is 1 when they differ.
Without arguments: compose every option of every group at mini scale, check it, and take one
training step with its model on random tokens; a rotation of its weights must not change what it
computes, rounding in training must. The exit status is 1 when an option fails.

examples:
  pgolf verify
  pgolf verify "" "model/attention/gate=none"
  pgolf verify pr1736 pr1787"""
BATCH = (2, 64)  # rows, tokens
QUIET_GROUPS = ("hydra", "size", "launch", "track")


def main(arguments: list[str]) -> int:
    """Run the verb; gives the exit status."""
    options = parser("verify", DESCRIPTION, '["OVERRIDES A" "OVERRIDES B"]').parse_args(arguments)
    if not options.words:
        return _smoke(options)
    if len(options.words) != 2:
        raise UserError(
            'pgolf verify compares two sets of overrides, each quoted: pgolf verify "ttt=none" "ttt=none seed=42".'
        )
    first, second = (_overrides(one) for one in options.words)
    return _equivalence(first, second, options)


def _overrides(text: str) -> list[str]:
    return [word if "=" in word or word.startswith("~") else f"experiment={word}" for word in shlex.split(text)]


def _equivalence(first: list[str], second: list[str], options: argparse.Namespace) -> int:
    screen, found = Screen(), []
    for overrides in (first, second):
        config = compose(overrides, options).config
        recipe = build.recipe(config)
        model = recipe.model(recipe.data.vocab_size, recipe.seed)
        digest, number = (
            state_hash(model),
            sum(value.numel() for value in model.state_dict().values()),
        )
        loss = _loss(model, recipe.data.vocab_size).item()
        screen.say(f"{' '.join(overrides) or 'defaults'}: {number:,} values, state {digest[:16]}, loss {loss:.9f}")
        found.append((digest, loss))
    (state_a, loss_a), (state_b, loss_b) = found
    difference = abs(loss_a - loss_b)
    same = state_a == state_b and difference == 0.0
    screen.say(
        f"state dicts {'equal' if state_a == state_b else 'differ'}, "
        f"loss difference {difference:g}: "
        f"{'the same model' if same else 'NOT the same model'}"
    )
    return 0 if same else 1


def state_hash(model: Any) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of a state dict."""
    import torch

    total = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _loss(model: Any, vocab_size: int) -> "torch.Tensor":
    """Mean cross-entropy on a fixed random batch, with every parameter moved off its initial value.

    Output projections start at zero, and would hide a difference in what feeds them. The plan is
    that of the end of training.
    """
    import torch

    from pgolf.kernels.attend import select
    from pgolf.model.context import Context
    from pgolf.model.roles import stream

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=stream(0, f"verify/{name}")))
    model.set_plan("looped" if "looped" in model.plans else next(iter(model.plans)))
    tokens = torch.randint(vocab_size, (BATCH[0], BATCH[1] + 1), generator=stream(0, "verify/tokens"))
    context = Context(select("sdpa", torch.device("cpu"))[1])
    logits = model.logits(model(tokens[:, :-1], context), context)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


def _smoke(options: argparse.Namespace) -> int:
    screen, failed, number = Screen(), 0, 0
    for title, job in _every_option(options):
        if job.unresolved and all(message == NO_VALUE_GIVEN for _, message in job.unresolved):
            needs = ", ".join(f"{key}=..." for key, _ in job.unresolved)
            screen.say(f"  --    {title}: not tried, it needs {needs}")
            continue
        number += 1
        problems = problems_of(job) or _step(job)
        failed += bool(problems)
        screen.say(f"  {'FAIL' if problems else 'ok  '}  {title}")
        for problem in problems:
            screen.say(f"        {problem}")
    screen.say(f"{number} options, {failed} failed.")
    return 1 if failed else 0


def _every_option(options: argparse.Namespace) -> Iterator[tuple[str, Job]]:
    with composer(options.config_dir, resolve_directory(options.config_path), options.config_name) as made:
        chosen = made.groups()
        for group, names in chosen.items():
            if group.partition("/")[0] in QUIET_GROUPS:
                continue
            key = made.placed(group)
            for name in names:
                overrides = [f"{key}={name}"] + ([] if group == "scale" else ["scale=mini"])
                yield f"{key}={name}", made.jobs(overrides, False)[0]


def _step(job: Job) -> list[str]:
    """One training step of the job's model on random tokens; at full scale none."""
    if "scale=full" in job.overrides:
        return []
    import torch

    recipe = build.recipe(job.config)
    model = recipe.model(recipe.data.vocab_size, recipe.seed)
    optimizers = recipe.optim(model)
    before = state_hash(model)
    loss = _loss(model, recipe.data.vocab_size)
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
    with rounding.applied():
        rounded = state_hash(model)
    return [] if rounded != before == state_hash(model) else ["rounding changed no weight, or left it changed"]
