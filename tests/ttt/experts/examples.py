"""Experts and texts that the tests share."""

import torch

from pgolf.score.mixture import Mixture
from pgolf.score.scorer import Window
from pgolf.ttt.experts.ngram_bias import NgramBias
from pgolf.ttt.experts.ngram_tilt import NgramTilt
from pgolf.ttt.experts.tap_in import TapIn
from pgolf.ttt.fixed import Chunked, Sliding
from tests.support import documents
from tests.ttt.strategies import phased, score_first_sgd

TAP_IN = {"min_match": 1, "max_match": 20, "weight": 0.1, "weight_outside": 0.3, "top_k": 30}


def tilt(history="document", boost=2.0):
    return NgramTilt(levels=[[3, 0.5, 1], [1, 0.4, 2]], boost=boost, by_confidence=True, history=history)


def count_bias(history="document", strength=1.5):
    return NgramBias(contexts=[2, 1], strength=strength, smoothing=0.5, history=history)


EXPERTS = {
    "ngram_tilt": tilt(),
    "ngram_tilt_scored": tilt("scored"),
    "ngram_bias": count_bias(),
    "ngram_bias_scored": count_bias("scored"),
    "tap_in": TapIn(**TAP_IN),
}
POWERLESS = {
    "ngram_tilt": tilt(boost=0.0),
    "ngram_bias": count_bias(strength=0.0),
    "tap_in": TapIn(**{**TAP_IN, "weight": 0.0, "weight_outside": 0.0}),
}
STRATEGIES = {
    "chunked": lambda **experts: Chunked(sequence_tokens=16, rows=2, **experts),
    "packed": lambda **experts: Chunked(sequence_tokens=8, rows=2, batch_tokens=32, documents="packed", **experts),
    "sliding": lambda **experts: Sliding(sequence_tokens=16, stride=4, rows=3, **experts),
    "joined": lambda **experts: Sliding(
        sequence_tokens=16, stride=4, rows=3, windows="over_text", documents="joined", **experts
    ),
    "score_first_sgd": lambda **experts: score_first_sgd(**experts),
    "lora": lambda **experts: phased(phases=0, **experts),
    "phased": lambda **experts: phased(prefix_docs=3, **experts),
}


def repetitive(lengths, seed=0):
    """Documents of few words, so that contexts come again."""
    validation = documents(lengths, seed=seed)
    ordinary = validation.tokens >= 4
    validation.tokens[ordinary] = 4 + validation.tokens[ordinary] % 5
    return validation


def following(expert, tokens):
    """What a reader proposes for each position of one document: [(token, figures...), ...]."""
    reader = expert.begin()()
    found = []
    for count, token in enumerate(tokens):
        found.append(list(reader.propose(count)))
        reader.observe(token)
    return found


def mixed(expert, tokens, log_probs):
    """log_probs [n - 1, V] of the tokens after the first, with the expert mixed in."""
    mixture = Mixture({"expert": expert}, torch.zeros(1, dtype=torch.int64))
    windows = [Window(0, 0, 1, len(tokens))]
    return mixture.mix(windows, log_probs[None], [tokens[1:]], [lambda start, end: tokens[start:end]])[0]
