"""Running a strategy on a sample, as often as the probes want, each time from the same state."""

import contextlib
import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pgolf.audit.recorder import Recorder, fingerprint, learning_frozen
from pgolf.audit.seal import WHILE_SCORING, SealBroken, sealed
from pgolf.audit.watch import WatchedScorer
from pgolf.console import Silent
from pgolf.data.validation import ValidationSet
from pgolf.distributed import Group
from pgolf.errors import UserError
from pgolf.model.gpt import GPT
from pgolf.score.ledger import RuleBroken
from pgolf.score.scorer import Scorer
from pgolf.ttt.strategy import Bench, Strategy

# Ids below this are control tokens (pad, bos, eos, unk): changes leave them alone, so that document boundaries stay
# where they are.
FIRST_ORDINARY_TOKEN = 4
# Documents of a sample are cut to different lengths, so that a strategy that orders them by length has some to order.
CUTS = (0.55, 0.85, 1.0, 0.4, 0.7, 0.95)


def sample_of(validation: ValidationSet, documents: int, max_tokens: int) -> ValidationSet:
    """The first `documents` documents that have a text, each cut to a share of `max_tokens` tokens (BOS included)."""
    ends = np.append(validation.document_starts[1:], len(validation.tokens))
    long_enough = np.flatnonzero(ends - validation.document_starts >= 2)[:documents]
    if len(long_enough) == 0:
        raise UserError("the validation text has no document of a token and more: there is nothing to audit.")
    starts = validation.document_starts[long_enough]
    room = [max(4, int(max_tokens * CUTS[i % len(CUTS)])) for i in range(len(long_enough))]
    cuts = np.minimum(ends[long_enough], starts + room)
    index = np.concatenate([np.arange(start, cut) for start, cut in zip(starts, cuts, strict=True)])
    summed = [int(validation.token_bytes[start:cut].sum()) for start, cut in zip(starts, cuts, strict=True)]
    return ValidationSet(
        tokens=validation.tokens[index],
        token_bytes=validation.token_bytes[index],
        document_starts=np.cumsum(cuts - starts) - (cuts - starts),
        document_bytes=np.where(cuts == ends[long_enough], validation.document_bytes[long_enough], summed),
        names=[validation.names[document] for document in long_enough],
    )


@dataclass(frozen=True)
class Trace:
    """What one run of a strategy did.

    positions: int64 [P], ascending, those for which a distribution was handed in; vectors: fp32 [P, V], theirs.
    """

    positions: np.ndarray
    vectors: Tensor
    scorer: WatchedScorer
    recorder: Recorder
    refusal: RuleBroken | SealBroken | None

    def vector(self, position: int) -> Tensor:
        """Log-probabilities fp32 [V] of one position."""
        return self.vectors[int(np.searchsorted(self.positions, position))]

    def upto(self, position: int) -> np.ndarray:
        """The positions that were scored no later than `position`."""
        order = self.scorer.ledger.order
        return self.positions[order[self.positions] <= order[position]]


def difference(a: Trace, b: Trace, positions: np.ndarray) -> float:
    """Largest absolute difference of log-probabilities; infinite when a position is missing or not a number."""
    if len(positions) == 0:
        return 0.0
    if not np.isin(positions, b.positions).all():
        return float("inf")
    rows = [torch.from_numpy(np.searchsorted(one.positions, positions)) for one in (a, b)]
    largest = (a.vectors[rows[0]] - b.vectors[rows[1]]).abs().max().item()
    return largest if largest == largest else float("inf")


class Stage:
    """A strategy, a model and a sample, set up anew for every run. files: those that the text was read from, which stay
    closed while the strategy runs: a change of the sample would not show what is read there."""

    def __init__(
        self, model: GPT, strategy: Strategy, sample: ValidationSet, bench: Bench, files: Iterable[Path] = ()
    ) -> None:
        self.model, self.strategy, self.sample, self.files = model, strategy, sample, list(files)
        self.loaded = fingerprint(model)
        self.group = Group(0, 1, model.tok_emb.weight.device)
        self.bench = replace(bench, console=Silent(), log=lambda event: None)
        ends = np.append(sample.document_starts[1:], len(sample.tokens))
        self.document_of = np.repeat(np.arange(len(ends)), ends - sample.document_starts)

    @property
    def num_documents(self) -> int:
        """Documents in the sample."""
        return len(self.sample.document_starts)

    def charged_to(self, positions: np.ndarray) -> np.ndarray:
        """Document of the tokens from which each position is predicted (the first of a document is charged to the one
        before)."""
        return self.document_of[positions - 1]

    def run(self, tokens: np.ndarray | None = None, frozen: bool = False) -> Trace:
        """Run the strategy from a fresh copy of everything, on `tokens` instead of the sample's. frozen: optimisers
        stand still."""
        model = copy.deepcopy(self.model)
        recorder = Recorder(model)
        sample = self.sample if tokens is None else replace(self.sample, tokens=tokens)
        scorer = WatchedScorer(sample, self.group, recorder)
        refusal: RuleBroken | SealBroken | None = None
        name = type(self.strategy).__name__
        try:
            with learning_frozen() if frozen else contextlib.nullcontext(), sealed(self.files, name, WHILE_SCORING):
                self.act(model, scorer, self.bench)
        except (RuleBroken, SealBroken) as broken:
            refusal = broken
        finally:
            recorder.close()
        positions = np.array(sorted(recorder.vectors), dtype=np.int64)
        vectors = torch.stack([recorder.vectors[int(p)] for p in positions]) if len(positions) else torch.zeros(0, 1)
        return Trace(positions, vectors, scorer, recorder, refusal or scorer.refusal)

    def act(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """One run of a copy of the strategy. UserError when it cannot be copied."""
        try:
            strategy = copy.deepcopy(self.strategy)
        except (TypeError, NotImplementedError, RuntimeError) as error:
            raise UserError(
                f"{type(self.strategy).__name__} cannot be copied ({error}): an audit runs it several times, each time "
                "as it was built. Make in run() what cannot be copied."
            ) from error
        strategy.run(model, scorer, bench)

    def changed(self, positions: np.ndarray, generator: np.random.Generator, vocabulary: int) -> np.ndarray:
        """The sample's tokens with other ordinary ones at those of `positions` (indices) that hold one."""
        tokens = self.sample.tokens.copy()
        chosen = positions[tokens[positions] >= FIRST_ORDINARY_TOKEN]
        fresh = generator.integers(FIRST_ORDINARY_TOKEN, vocabulary - 1, size=len(chosen))
        tokens[chosen] = fresh + (fresh >= tokens[chosen])  # never the token that was there
        return tokens
