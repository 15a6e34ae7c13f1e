"""`pgolf plan [sweep overrides]`: what a study costs, before it starts."""

import math
import shlex
from pathlib import Path

from pgolf.app import build, estimate
from pgolf.app.compose import Job
from pgolf.app.console import Screen
from pgolf.app.estimate import Estimate
from pgolf.app.sweep import seeds_first
from pgolf.app.verbs.composing import compose_all, parser, refuse_words
from pgolf.digest import group_digest, recipe_of
from pgolf.errors import UserError
from pgolf.report.configuration import difference
from pgolf.report.proposal import Configuration, Package, refuse_scores, write_proposal
from pgolf.report.studies import Study, find_study

DESCRIPTION = """\
Count the jobs of a sweep and what they cost: jobs x seconds x price. The seconds are those of
finished runs of the same configuration (any seed) in the run folders, or --seconds, or
train.max_seconds as a lower bound; without any it says so. --study takes the sweep of a published
plan, and checks the budget that was published for it. --proposal writes the plan down before its
runs: settings, commands, seeds and budget, and no score.

examples:
  pgolf plan seed=42,0,1234 ttt=none,phased
  pgolf plan seed=42,0,1234 scale=full --seconds 1500 --price 20
  pgolf plan --study golden_sunflowers --price 8xH100=20 --price 8xA100=12
  pgolf plan --study golden_sunflowers --proposal proposals/golden-sunflowers"""


def main(arguments: list[str]) -> int:
    """Run the verb; gives the exit status."""
    made = parser("plan", DESCRIPTION, "[key=value ...] [--study NAME] [--seconds S] [--price P] [--proposal DIR]")
    made.add_argument("--multirun", "-m", action="store_true", help="accepted; a plan is always of a sweep")
    made.add_argument("--seconds", type=float, help="seconds of one job, where no finished run tells")
    made.add_argument(
        "--price", action="append", default=[], help="price of one hour: P, or MACHINE=P; may be repeated"
    )
    made.add_argument("--study", help="the sweep of a published plan; words after it change its settings")
    made.add_argument(
        "--proposal", type=Path, metavar="DIR", help="write the plan there, as a proposal without a score"
    )
    options = made.parse_args(arguments)
    refuse_words(options.words)
    if options.proposal is not None:
        refuse_scores(options.proposal)
    prices = _prices(options.price)
    study = find_study(options.study) if options.study else None
    words = seeds_first(study.with_words(options.words) if study else options.words)
    jobs = compose_all(words, options, multirun=True)
    found = estimate.estimates(jobs, options.seconds)
    screen = Screen()
    if study is not None:
        screen.say(study.title)
    for job, one in zip(jobs, found, strict=True):
        shown = "finished, will be skipped" if one.finished else f"{estimate.duration(one.seconds)} ({one.source})"
        screen.say(f"  {' '.join(job.overrides) or 'defaults'}: {shown}")
    done = sum(one.finished for one in found)
    screen.say(f"{len(jobs)} jobs, {done} finished, {len(jobs) - done} to run.")
    rows = estimate.by_configuration(jobs, found)
    if len(rows) > 1:
        screen.say(f"\n{estimate.render(rows, prices)}\n")
    for line in estimate.summed(found, prices):
        screen.say(line)
    if study is not None:
        _tell(screen, study)
    if options.proposal is not None:
        package = _package(words, jobs, found, prices, study)
        written = write_proposal(options.proposal, package)
        screen.say(f"\nwrote {' and '.join(map(str, written))}: a proposal, without a score")
    return 0


def _prices(given: list[str]) -> dict[str, float]:
    """Price of an hour by machine; one without a name is that of `the machine`."""
    prices = {}
    for text in given:
        name, _, number = text.rpartition("=")
        try:
            price = float(number)
        except ValueError:
            price = math.nan
        if not 0.0 <= price < math.inf:
            raise UserError(f"--price {text}: give the price of one hour, as 20 or as 8xH100=20.")
        prices[name or estimate.THE_MACHINE] = price
    return prices


def _tell(screen: Screen, study: Study) -> None:
    """The published budget of a study, checked, and what is worth knowing."""
    screen.say(f"\npublished: {study.budget.source}\n\n{study.budget.render()}\n")
    wrong = study.budget.mismatches()
    for sentence in wrong:
        screen.say(f"MISMATCH  {sentence}")
    screen.say(
        f"{len(wrong)} of its lines do not follow from their own factors; worked out from these, all of it comes to "
        f"{study.budget.worked_out():.1f} hours and not {study.budget.total:.1f}."
    )
    for remark in study.remarks:
        screen.say(f"note: {remark}")


def _package(
    words: list[str], jobs: list[Job], found: list[Estimate], prices: dict[str, float], study: Study | None
) -> Package:
    """The plan as a proposal. UserError when some of its runs are finished: then it would come after them."""
    if finished := [job for job, one in zip(jobs, found, strict=True) if one.finished]:
        raise UserError(
            f"{len(finished)} of these runs are finished ({finished[0].directory}, ...): a proposal comes before its "
            "runs. Report finished ones with `pgolf report`."
        )
    first: dict[str, tuple[Job, Estimate]] = {}
    for job, one in zip(jobs, found, strict=True):
        first.setdefault(group_digest(job.config), (job, one))
    base = next(iter(first.values()))[0]
    known = [one.seconds for one in found if one.seconds is not None]
    return Package(
        title=study.title if study else "A study before its runs",
        command=shlex.join(["pgolf", "--multirun", *words]),
        seeds=list(dict.fromkeys(int(job.config["seed"]) for job in jobs)),
        configurations=[_configuration(job, one, base) for job, one in first.values()],
        runs=len(jobs),
        hours=sum(known) / 3600 if len(known) == len(jobs) else None,
        prices=prices,
        remarks=study.remarks if study else [],
        mismatches=study.budget.mismatches() if study else [],
    )


def _configuration(job: Job, one: Estimate, base: Job) -> Configuration:
    changed = {key: values[1] for key, values in difference([base.config, job.config]).items()}
    return Configuration(
        name=estimate.configuration_name(job),
        digest=group_digest(job.config),
        parameters=_parameters(job),
        hours=one.seconds / 3600 if one.seconds is not None else None,
        source=one.source,
        changed=changed,
        config=recipe_of(job.config),
    )


def _parameters(job: Job) -> int:
    import torch

    recipe = build.recipe(job.config)
    with torch.device("meta"):
        model = recipe.model(recipe.data.vocab_size, recipe.seed)
    return sum(parameter.numel() for parameter in model.parameters())
