"""Strategies that break the rules in ways that really happened. Each must fail its audit; nothing else may use them."""

import torch
from torch import Tensor

from pgolf.kernels.packing import Packing
from pgolf.model.context import Context
from pgolf.model.gpt import GPT
from pgolf.score.scorer import Scorer, Window
from pgolf.ttt.strategy import Bench, window_log_probs


def _chunks(scorer: Scorer, size: int) -> list[Window]:
    return [
        Window(document, first, start, min(start + size, end))
        for document in range(scorer.num_documents)
        for first, end in [scorer.span(document)]
        for start in range(first + 1, end, size)
    ]


def _fit(model: GPT, parameters: list[Tensor], inputs: Tensor, bias: Tensor | None, steps: int) -> None:
    """Gradient steps on the next tokens that the inputs themselves give away."""
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for _ in range(steps):
        hidden = model(inputs)
        logits = model.logits(hidden if bias is None else hidden + bias)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), inputs[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


class PretrainOnValidation:
    """Trains on validation text before scoring it (PR 1376 and its family). Breaks C3."""

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """Train on what can be had of each document before anything is scored, then score."""
        for window in _chunks(scorer, 64):
            if window.width > 1 and window.score_start == window.context_start + 1:
                _fit(model, list(model.parameters()), scorer.inputs([window]), None, steps=1)
        with torch.no_grad():
            for window in _chunks(scorer, 64):
                scorer.score([window], window_log_probs(model, scorer, [window], bench.attention))


class OptimiseOnScoredPositions:
    """Tunes a bias on the very positions it is about to score (SLOT, PR 1229 and its family). Breaks C1."""

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """For each chunk: fit a bias on it, then score it with that bias."""
        for window in _chunks(scorer, 64):
            inputs = scorer.inputs([window])
            bias = torch.zeros(model.dim, device=inputs.device, requires_grad=True)
            if window.width > 1:
                _fit(model, [bias], inputs, bias, steps=2)
            with torch.no_grad():
                logits = model.logits(model(inputs) + bias)[:, window.first_column :]
                scorer.score([window], torch.log_softmax(logits, dim=-1))


class RewardedTarget:
    """Adds mass to a guess without taking it from the others (unnormalised mixtures, PR 779 and its family). Breaks
    C2."""

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """Score with the previous token's probability doubled."""
        with torch.no_grad():
            for window in _chunks(scorer, 64):
                log_probs = window_log_probs(model, scorer, [window], bench.attention)
                guess = scorer.inputs([window])[:, window.first_column :, None]
                scorer.score(
                    [window], log_probs.scatter_add(-1, guess, torch.full_like(guess, 0.7, dtype=log_probs.dtype))
                )


class BestOfTwo:
    """Scores everything a second time after having seen it (PR 888, 959). Breaks C4."""

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """Two passes."""
        with torch.no_grad():
            for _ in range(2):
                for window in _chunks(scorer, 64):
                    scorer.score([window], window_log_probs(model, scorer, [window], bench.attention))


class LooksAhead:
    """Attention without its causal mask: every prediction reads its own target. Breaks C1."""

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """Score with attention over the whole window."""

        def uncausal(q: Tensor, k: Tensor, v: Tensor, packing: Packing | None) -> Tensor:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2)

        with torch.no_grad():
            for window in _chunks(scorer, 64):
                hidden = model(scorer.inputs([window]), Context(uncausal))[:, window.first_column :]
                scorer.score([window], torch.log_softmax(model.logits(hidden), dim=-1))


class LearnsFromOpenedContext:
    """Opens the whole text for scoring in any order and trains on what it may read as context. Breaks C3."""

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """Ask for the last position of the joined text with all before it as context, train on that, then score."""
        scorer.join_documents()
        start, end = scorer.span(0)
        scorer.open(start, end)
        _fit(model, list(model.parameters()), scorer.inputs([Window(0, start, end - 1, end)]), None, steps=1)
        with torch.no_grad():
            for window in _chunks(scorer, 64):
                scorer.score([window], window_log_probs(model, scorer, [window], bench.attention))


class ForgetsTheTail:
    """Scores only whole chunks and leaves the rest out. Breaks C4."""

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """Skip what does not fill a chunk."""
        with torch.no_grad():
            for window in _chunks(scorer, 64):
                if window.length == 64:
                    scorer.score([window], window_log_probs(model, scorer, [window], bench.attention))


# name -> (strategy, conditions of which at least one must fail)
KNOWN_BAD = {
    "pretrain_on_validation": (PretrainOnValidation(), {"C3"}),
    "optimise_on_scored_positions": (OptimiseOnScoredPositions(), {"C1a", "C1b"}),
    "rewarded_target": (RewardedTarget(), {"C2"}),
    "best_of_two": (BestOfTwo(), {"C4"}),
    "looks_ahead": (LooksAhead(), {"C1a", "C1b"}),
    "learns_from_opened_context": (LearnsFromOpenedContext(), {"C3"}),
    "forgets_the_tail": (ForgetsTheTail(), {"C4"}),
}
