"""Small strategies that the tests share, and running them."""

from pgolf.console import Silent
from pgolf.kernels.attend import sdpa
from pgolf.score.scorer import Scorer
from pgolf.ttt.global_sgd import GlobalSGD
from pgolf.ttt.lora import LoraSettings
from pgolf.ttt.phased import Phased
from pgolf.ttt.score_first_sgd import ScoreFirstSGD
from pgolf.ttt.strategy import Bench
from tests.support import ALONE, tiny_model

BENCH = Bench(0, sdpa, Silent())
ALL_SITES = ["q", "k", "v", "o", "mlp", "head"]


def lora(**changes):
    settings = {
        "rank": 2,
        "alpha": 3.0,
        "targets": ALL_SITES,
        "lr": 0.01,
        "beta1": 0.0,
        "beta2": 0.99,
        "epsilon": 1e-10,
        "weight_decay": 0.0,
    }
    return LoraSettings(**{**settings, **changes})


def phased(lora_changes=None, sgd_changes=None, **changes):
    sgd = {"lr": 0.05, "momentum": 0.9, "chunk_tokens": 32, "sequence_tokens": 16, "epochs": 1, "clip_norm": 1.0}
    settings = {"phases": 2, "prefix_docs": 6, "chunk": 8, "context_tokens": 24, "rows": 2}
    return Phased(
        **{**settings, **changes}, lora=lora(**(lora_changes or {})), sgd=GlobalSGD(**{**sgd, **(sgd_changes or {})})
    )


def score_first_sgd(sgd_changes=None, **changes):
    sgd = {"lr": 0.05, "momentum": 0.9, "chunk_tokens": 32, "sequence_tokens": 16, "epochs": 2, "clip_norm": 1.0}
    settings = {"sequence_tokens": 16, "stride": 4, "rows": 3}
    return ScoreFirstSGD(
        **{**settings, **changes}, sgd=GlobalSGD(**{**sgd, "boundaries": "rows", **(sgd_changes or {})})
    )


def run(strategy, validation, group=ALONE, model=None, bench=BENCH):
    model = model or tiny_model(scramble=0.1)
    model.set_plan("looped")
    scorer = Scorer(validation, group)
    strategy.run(model, scorer, bench)
    return scorer, model
