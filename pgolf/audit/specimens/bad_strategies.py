"""Strategies that break the rules. Each must be caught by its own check; nothing else may use them."""

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pgolf.audit.specimens.ground import VOCABULARY
from pgolf.audit.specimens.steps import CHUNK, chunks, fit, given_away, score_plainly
from pgolf.kernels.packing import Packing
from pgolf.model.context import Context
from pgolf.model.gpt import GPT
from pgolf.score.scorer import Scorer, Window
from pgolf.ttt.strategy import Bench, packed_log_probs, window_log_probs


class PretrainOnValidation:
    """Trains on validation text before scoring it (pre-quantisation TTT: PR 1376, 1485, 1487, 1911, 1972)."""

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """Train on what can be had of each document before anything is scored, then score."""
        for document in range(scorer.num_documents):
            start, end = scorer.span(document)
            fit(model, list(model.parameters()), scorer.inputs([Window(document, start, start + 1, end)]), None, 1)
        score_plainly(model, scorer, bench)


class CompileWarmUp:
    """Compiles with a real step on the first validation tokens (PR 1530 as merged)."""

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """One backward and one step before the loop, to have the kernels ready."""
        start, end = scorer.span(0)
        inputs = scorer.inputs([Window(0, start, start + 1, min(start + CHUNK, end))])
        fit(model, list(model.parameters()), inputs, None, steps=1)
        score_plainly(model, scorer, bench)


class OptimiseOnScoredPositions:
    """Tunes a bias on the very positions it is about to score (SLOT: PR 1229, 1263, 1319, 1430)."""

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """For each chunk: fit a bias on it, then score it with that bias."""
        for window in chunks(scorer):
            inputs = scorer.inputs([window])
            bias = torch.zeros(model.dim, device=inputs.device, requires_grad=True)
            fit(model, [bias], inputs, bias, steps=2)
            with torch.no_grad():
                logits = model.logits(model(inputs) + bias)[:, window.first_column :]
                scorer.score([window], torch.log_softmax(logits, dim=-1))


class HashedNgram:
    """A cache of pairs whose key holds the target: only the realised token is reweighted, the rest is filled in
    afterwards (PR 727, 770, 888, 948; ruled out in PR 779)."""

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """Score with the hit rate of (token before, realised token) mixed in; the others share what is left."""
        hits, seen = np.zeros(97), np.zeros(97)
        with torch.no_grad():
            for window in chunks(scorer):
                log_probs = window_log_probs(model, scorer, [window], bench.attention)
                probs = log_probs[0].double().exp()
                pairs = given_away(scorer.inputs([window]), window)
                for column, before, target in pairs:
                    rate = (hits[(before * 31 + target) % 97] + 0.05) / (seen[before % 97] + 1.0)
                    old = float(probs[column, target])
                    new = 0.6 * old + 0.4 * min(rate, 0.95)
                    probs[column] *= (1 - new) / (1 - old)
                    probs[column, target] = new
                scorer.score([window], probs.log().float()[None])
                for _, before, target in pairs:
                    hits[(before * 31 + target) % 97] += 1
                    seen[before % 97] += 1


class RewardedGuess:
    """Adds mass to a guess without taking it from the others (unnormalised mixtures: PR 779 and its family)."""

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """Score with the probability of the token before doubled."""
        with torch.no_grad():
            for window in chunks(scorer):
                log_probs = window_log_probs(model, scorer, [window], bench.attention)
                guess = scorer.inputs([window])[:, window.first_column :, None]
                more = torch.full_like(guess, 0.7, dtype=log_probs.dtype)
                scorer.score([window], log_probs.scatter_add(-1, guess, more))


class WordGateTilt:
    """An expert for the beginning of words, opened where the realised token begins one (PR 1420, 1967, 2018, 2118)."""

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """Tilt towards word beginnings (here even ids) where the target is one; normalised, as the rules ask."""
        tilt = 0.8 * (torch.arange(VOCABULARY) % 2 == 0).float()
        with torch.no_grad():
            for window in chunks(scorer):
                log_probs = window_log_probs(model, scorer, [window], bench.attention)
                for column, _, target in given_away(scorer.inputs([window]), window):
                    if target % 2 == 0:
                        log_probs[0, column] = torch.log_softmax(log_probs[0, column] + tilt, dim=-1)
                scorer.score([window], log_probs)


class LowerOfTwoCosts:
    """Makes two distributions for each chunk and hands in the one under which its tokens cost less."""

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """Tilt towards even ids or towards odd ones, as the tokens that stand in the window's own inputs like it."""
        even = 0.3 * (torch.arange(VOCABULARY) % 2 == 0).float()
        with torch.no_grad():
            for window in chunks(scorer):
                plain = window_log_probs(model, scorer, [window], bench.attention)
                pairs = given_away(scorer.inputs([window]), window)
                tried = [torch.log_softmax(plain + tilt, dim=-1) for tilt in (even, -even)]
                costs = [-sum(float(one[0, column, target]) for column, _, target in pairs) for one in tried]
                scorer.score([window], tried[int(costs[1] < costs[0])])


class ReadsTheFiles:
    """Opens the files of the validation text past the scorer, and counts all of their tokens before it scores any."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """Score with what is frequent in the whole text made likelier."""
        vocabulary = model.tok_emb.weight.shape[0]
        found = np.concatenate([np.fromfile(path, np.uint16) for path in self.files])
        counts = np.bincount(found[found < vocabulary], minlength=vocabulary)
        prior = torch.from_numpy(np.log(counts + 1.0)).float()
        with torch.no_grad():
            for window in chunks(scorer):
                plain = window_log_probs(model, scorer, [window], bench.attention)
                scorer.score([window], torch.log_softmax(plain + 0.3 * prior, dim=-1))


class LooksAhead:
    """Attention without its causal mask: every prediction reads its own target."""

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """Score with attention over the whole window."""

        def uncausal(q: Tensor, k: Tensor, v: Tensor, packing: Packing | None) -> Tensor:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2)

        with torch.no_grad():
            for window in chunks(scorer):
                hidden = model(scorer.inputs([window]), Context(uncausal))[:, window.first_column :]
                scorer.score([window], torch.log_softmax(model.logits(hidden), dim=-1))


class LearnsFromOpenedContext:
    """Opens the whole text for scoring in any order and trains on what it may read as context."""

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """Score a little, ask for the last position with all before it as context, train on that, score the rest."""
        scorer.join_documents()
        start, end = scorer.span(0)
        scorer.open(start, end)
        windows = chunks(scorer)
        score_plainly(model, scorer, bench, windows[:1])
        fit(model, list(model.parameters()), scorer.inputs([Window(0, start, end - 1, end)]), None, steps=1)
        score_plainly(model, scorer, bench, windows[1:])


class RescoresEverything:
    """Scores everything a second time after having learned from it (PR 888, 959)."""

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """Two passes."""
        for _ in range(2):
            score_plainly(model, scorer, bench)


class BestOfTwo:
    """Tries two temperatures on a copy of the scorer and takes the better one (PR 991 before its correction)."""

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """A pass to choose with, then the pass that counts."""
        trial = copy.deepcopy(scorer)
        score_plainly(model, trial, bench)
        score_plainly(model, scorer, bench)


class EditsTheLedger:
    """Halves its worst entries when all is scored."""

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """Score, then reach past the read-only view of the ledger."""
        score_plainly(model, scorer, bench)
        entries = scorer.ledger._nats
        worst = np.argsort(np.nan_to_num(entries))[-3:]
        entries[worst] *= 0.5


class EntersItself:
    """Writes costs into the ledger without a distribution behind them."""

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """Score one document as it should be, and call the others free."""
        score_plainly(model, scorer, bench, [window for window in chunks(scorer) if window.document == 0])
        for document in range(1, scorer.num_documents):
            start, end = scorer.span(document)
            scorer.ledger.write(document, start + 1, np.zeros(end - start - 1), 0)


class ReadsTheTargets:
    """Takes the text out of the scorer, and bets on what it finds."""

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """Double the odds of every target."""
        with torch.no_grad():
            for window in chunks(scorer):
                log_probs = window_log_probs(model, scorer, [window], bench.attention)
                targets = scorer._tokens[window.score_start : window.score_end]
                log_probs[0, torch.arange(window.length), targets] += 0.7
                scorer.score([window], torch.log_softmax(log_probs, dim=-1))


class SmearsAcrossDocuments:
    """Packs pieces of several documents in one row, where a gate without a BOS mask reads the neighbour's last token
    (PR 1797, 1874), and does not say so."""

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """One row for the first chunk of every document, the others on their own."""
        spans = [scorer.span(document) for document in range(scorer.num_documents)]
        scorer.open(0, spans[-1][1])
        heads = [Window(i, start, start + 1, min(start + CHUNK, end)) for i, (start, end) in enumerate(spans)]
        with torch.no_grad():
            scorer.score(heads, packed_log_probs(model, scorer, heads, bench.attention))
        tails = [Window(w.document, w.context_start, w.score_end, spans[w.document][1]) for w in heads]
        score_plainly(model, scorer, bench, [window for window in tails if window.length > 0])


class LearnsBackwards:
    """Scores the last document first and learns from each; forbidden only where the policy is order=text."""

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """From the end of the text to its beginning, a step on each scored document."""
        for document in reversed(range(scorer.num_documents)):
            score_plainly(model, scorer, bench, [w for w in chunks(scorer) if w.document == document])
            fit(model, list(model.parameters()), scorer.revealed(document, *scorer.span(document))[None], None, 1)


class ForgetsTheTail:
    """Scores only whole chunks and leaves the rest out (the root script drops (n - 1) % sequence length)."""

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """Skip what does not fill a chunk."""
        score_plainly(model, scorer, bench, [window for window in chunks(scorer) if window.length == CHUNK])


class LearnsAlone:
    """Every process learns from its own documents and tells the others nothing."""

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """Documents dealt out to the processes; a step on each that was scored here."""
        for document in range(scorer.group.rank, scorer.num_documents, scorer.group.world_size):
            score_plainly(model, scorer, bench, [w for w in chunks(scorer) if w.document == document])
            fit(model, list(model.parameters()), scorer.revealed(document, *scorer.span(document))[None], None, 1)
        scorer.synchronise()
