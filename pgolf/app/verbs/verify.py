"""`pgolf verify [A B]`: are two configurations the same model; does everything work, and give the published values."""

import argparse
import shlex
import time
from collections.abc import Iterable

from pgolf.app import build
from pgolf.app.console import Screen
from pgolf.app.verbs.composing import composed, parser
from pgolf.errors import UserError

DESCRIPTION = """\
With two sets of overrides (each one quoted word; a bare name is an experiment): compare their
models. Equal means the same SHA-256 of the initial state dict, and a loss difference of exactly
zero on a fixed random batch. Of each, a few steps of training on random tokens say which scheduled
events fire, its schedules which never can, and a count of optimiser steps while a text is scored
whether something learns that should not. The exit status is 1 when the models differ, an event
never fires, or a strategy without adaptation steps an optimiser.
Without arguments: published values of PR 2059 (its module smoke test, its initial state, its loss)
beside what is found here; events of the defaults and of its presets; then every option of every
group at mini scale is composed, checked, and takes one training step with its model on random
tokens; a rotation of its weights must not change what it computes, rounding in training must. The
exit status is 1 when a value differs or an option fails.

examples:
  pgolf verify
  pgolf verify "" "model/attention/gate=none"
  pgolf verify "pr2059_baseline scale=mini data=pydocs" "lora_ttt scale=mini data=pydocs"
  pgolf verify pr1736 pr1787"""
WATCHED = ("", "pr2059_baseline", "pr2059_phinta", "pr2059_jepa", "pr2059_ut", "pr2059_all", "pr2059_e2e")
"""Experiments whose events are looked at without arguments; the first is the defaults."""
MINI = ("scale=mini", "data=pydocs")


def main(arguments: list[str]) -> int:
    """Run the verb; gives the exit status."""
    options = parser("verify", DESCRIPTION, '["OVERRIDES A" "OVERRIDES B"]').parse_args(arguments)
    if not options.words:
        return _everything(options)
    if len(options.words) != 2:
        raise UserError(
            'pgolf verify compares two sets of overrides, each quoted: pgolf verify "ttt=none" "ttt=none seed=42".'
        )
    from pgolf.app.verification.pair import compare

    first, second = (_overrides(one) for one in options.words)
    return compare(first, second, options)


def _overrides(text: str) -> list[str]:
    return [word if "=" in word or word.startswith("~") else f"experiment={word}" for word in shlex.split(text)]


def _everything(options: argparse.Namespace) -> int:
    from pgolf.app.verification.options import try_all

    screen, begun, wrong = Screen(), time.monotonic(), 0
    jobs = composed(["experiment=pr2059_baseline"], options)
    if jobs[0].refusals:
        screen.say("published values and events: not looked at, this configuration has no preset pr2059_baseline")
    else:
        wrong += _published(screen, options) + _events(screen, options)
    wrong += try_all(screen, options)
    screen.say(f"verified in {time.monotonic() - begun:.0f} s: {'all is well' if not wrong else f'{wrong} failed'}")
    return 1 if wrong else 0


def _published(screen: Screen, options: argparse.Namespace) -> int:
    """Print the published values beside what is found; gives how many differ."""
    from pgolf.interop.golden_sunflowers import SIZES, TABLES, Finding, equivalence, smoke

    def told(title: str, findings: Iterable[Finding]) -> int:
        screen.say(title)
        wrong = 0
        for one in findings:
            wrong += not one.agrees
            screen.say(f"  {'ok  ' if one.agrees else 'FAIL'}  {one.what}: {one.found} (published {one.published})")
        return wrong

    job = composed(["experiment=pr2059_baseline", *TABLES], options)[0]
    model = build.build(job.config["model"], "model")(SIZES.vocab_size, job.config["seed"])
    failed = told("published: PR 2059, module smoke test, seed 1597", smoke())
    return failed + told("published: PR 2059, the baseline's initial state and its loss", equivalence(model))


def _events(screen: Screen, options: argparse.Namespace) -> int:
    """Print the events of a few configurations; gives how many have a problem."""
    from pgolf.app.verification.events import story

    screen.say("events of training on random tokens, and optimisers while a text is scored")
    failed = 0
    for name in WATCHED:
        job = composed([*([f"experiment={name}"] if name else []), *MINI], options)[0]
        found = story(build.recipe(job.config))
        failed += bool(found.problems())
        screen.say(f"  {'FAIL' if found.problems() else 'ok  '}  {name or 'defaults'}")
        for line in found.lines():
            screen.say(f"        {line}")
    return failed
