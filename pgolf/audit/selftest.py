"""The audit's own audit: every known-bad procedure must fail its own check, and no known-good one may fail any."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pgolf.audit.artifact import artifact_check
from pgolf.audit.checks import Check, failed
from pgolf.audit.probe import Audit
from pgolf.audit.specimens import bad_strategies as bad
from pgolf.audit.specimens import good
from pgolf.audit.specimens.artifacts import Pipeline
from pgolf.audit.specimens.ground import LENGTHS, TEXT_VOCABULARY, small_dataset, small_text, tiny_model
from pgolf.audit.specimens.texts import BAD_TEXTS, GOOD_TEXTS
from pgolf.console import Console, Silent
from pgolf.data.dataset import Dataset
from pgolf.kernels.attend import sdpa
from pgolf.ttt.strategy import Bench, Strategy

SEED = 7
RANDOM_CONFIGURATIONS = 20
BENCH = Bench(SEED, sdpa, Silent())
SETTINGS: dict[str, Any] = {"documents": len(LENGTHS), "max_tokens": 64, "flips": 2}

# name -> (strategy, the check that must fail, policies other than the default ones)
BAD_STRATEGIES: dict[str, tuple[Strategy, str, dict[str, Any]]] = {
    "SLOT on scored positions": (bad.OptimiseOnScoredPositions(), "C1b", {}),
    "hashed n-gram cache with the target in its key": (bad.HashedNgram(), "C2c", {}),
    "unnormalised mixture": (bad.RewardedGuess(), "C2a", {}),
    "TTT on validation before it is scored": (bad.PretrainOnValidation(), "C3b", {}),
    "validation tokens in the compile warm-up": (bad.CompileWarmUp(), "C3b", {}),
    "rescoring": (bad.RescoresEverything(), "C4a", {}),
    "best of two passes": (bad.BestOfTwo(), "C4a", {}),
    "word gate that reads the realised token": (bad.WordGateTilt(), "C1a", {}),
    "lower of two costs": (bad.LowerOfTwoCosts(), "C1b", {}),
    "attention without a mask": (bad.LooksAhead(), "C1a", {}),
    "smear gate across documents": (bad.SmearsAcrossDocuments(), "C1c", {}),
    "later documents first": (bad.LearnsBackwards(), "C1d", {"order": "text"}),
    "learning from opened context": (bad.LearnsFromOpenedContext(), "C3a", {}),
    "targets taken out of the scorer": (bad.ReadsTheTargets(), "C2b", {}),
    "costs without a distribution": (bad.EntersItself(), "C2b", {}),
    "ledger entry edited afterwards": (bad.EditsTheLedger(), "C4b", {}),
    "tail dropped": (bad.ForgetsTheTail(), "M2", {}),
    "processes that learn apart": (bad.LearnsAlone(), "M1", {}),
}
GOOD_STRATEGIES: dict[str, Strategy] = {
    "online adaptation of a bias": good.OnlineBias(),
    "online cache of pairs": good.BigramCache(),
}
BAD_ARTIFACTS: dict[str, Pipeline] = {
    "pre-quantisation TTT on validation": Pipeline(last_steps=True),
    "validation tokens in the warm-up of training": Pipeline(warm_up=True),
    "scales calibrated on validation": Pipeline(calibration="val"),
}


@dataclass(frozen=True)
class Tried:
    """One specimen: the check that must fail (empty: none may), those that did, and whether that is right."""

    name: str
    expected: str
    caught: list[str]
    right: bool


Probe = Callable[[], list[Check]]


def specimens(workplace: Path, random_configurations: int = RANDOM_CONFIGURATIONS) -> Iterator[tuple[str, str, Probe]]:
    """(name, check that must fail or nothing, how it is probed) of every specimen; data are made in `workplace`."""
    for name, (strategy, expected, policies) in BAD_STRATEGIES.items():
        yield name, expected, partial(probe, strategy, smear=True, **policies)
    dataset = small_dataset(workplace / "data")
    yield "validation files read by a strategy", "C2b", partial(_beside_files, dataset)
    for name, (text, expected) in BAD_TEXTS.items():
        yield name, expected, partial(text, dataset)
    for name, pipeline in BAD_ARTIFACTS.items():
        yield name, "D6", partial(_artifact, pipeline, dataset, workplace / name)
    for name, strategy in GOOD_STRATEGIES.items():
        yield name, "", partial(probe, strategy)
    for name, strategy in good.configurations(random_configurations):
        yield name, "", partial(probe, strategy)
    for name, text in GOOD_TEXTS.items():
        yield name, "", partial(text, dataset)
    yield "training, calibration, packing", "", partial(_artifact, Pipeline(), dataset, workplace / "good")


def _artifact(pipeline: Pipeline, dataset: Dataset, workplace: Path) -> list[Check]:
    return [artifact_check(pipeline.make, dataset, workplace)]


def _beside_files(dataset: Dataset) -> list[Check]:
    model, strategy = tiny_model(TEXT_VOCABULARY), bad.ReadsTheFiles(dataset.files("val"))
    return Audit(**SETTINGS).run(model, strategy, dataset.validation(), BENCH, dataset=dataset)


def probe(strategy: Strategy, smear: bool = False, **policies: Any) -> list[Check]:
    """All checks of a strategy on the tiny model (smear: with a smear gate) and the small text."""
    audit = Audit(**SETTINGS, **policies)
    return audit.run(tiny_model(smear=smear), strategy, small_text(), BENCH, thorough=True)


def judge(name: str, expected: str, checks: list[Check]) -> Tried:
    """Whether a specimen was caught by its own check, or by none where none may."""
    caught = failed(checks)
    return Tried(name, expected, caught, expected in caught if expected else not caught)


def self_test(workplace: Path, console: Console, random_configurations: int = RANDOM_CONFIGURATIONS) -> dict[str, Any]:
    """Try every specimen; `verdict` is `pass` when each was judged as it must be."""
    tried = []
    with console.task("self-test", None) as task:
        for name, expected, run in specimens(workplace, random_configurations):
            tried.append(judge(name, expected, run()))
            task.update(len(tried), last=name)
    good_ones = all(one.right for one in tried)
    return {"verdict": "pass" if good_ones else "fail", "specimens": [asdict(one) for one in tried]}
