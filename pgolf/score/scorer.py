"""The scorer holds the targets. A strategy asks for inputs, hands back distributions, and may learn only from what
has been scored."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NoReturn, Protocol

import numpy as np
import torch
from torch import Tensor

from pgolf.data.validation import ValidationSet
from pgolf.distributed import Group
from pgolf.score.ledger import EVERY_TOKEN, Coverage, Ledger, RuleBroken, Total
from pgolf.score.mixture import Experts, Gain, Mixture

# How far the probabilities handed in may miss 1, in nats (an fp32 log-softmax over 8192 tokens misses by about 1e-6).
NORMALISATION_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Window:
    """Positions [score_start, score_end) of one document, predicted from tokens [context_start, score_end - 1).

    Position p is predicted by the hidden state of input column p - 1 - context_start.
    """

    document: int
    context_start: int
    score_start: int
    score_end: int

    @property
    def width(self) -> int:
        """Number of input tokens."""
        return self.score_end - 1 - self.context_start

    @property
    def first_column(self) -> int:
        """Input column that predicts `score_start`."""
        return self.score_start - 1 - self.context_start

    @property
    def length(self) -> int:
        """Number of scored positions."""
        return self.score_end - self.score_start


class Observer(Protocol):
    """Sees what passes through the scorer; the probes of the validity conditions are observers."""

    def handed_out(self, windows: Sequence[Window]) -> None:
        """The inputs of `windows` are about to be given to the strategy."""

    def scored(self, windows: Sequence[Window], log_probs: Tensor) -> None:
        """The strategy gave log_probs [B, C, V] for `windows`; nothing is revealed yet."""


class Scorer:
    """Gives inputs, takes full distributions, writes the ledger, and reveals targets only afterwards.

    By construction every position is charged once and in order within its document (C4), by a finite distribution that
    adds up to 1 (C2), and `revealed` gives a token only after it was charged (C3). The inputs of a window do contain
    its own tokens but the last, because a forward over many positions needs them: that no prediction reads its own
    target (C1) and that nothing was learned from them first (C3) is what `pgolf audit` probes.
    A scorer that refused something stays refused: its total cannot be had any more.
    """

    def __init__(self, validation: ValidationSet, group: Group, observer: Observer | None = None) -> None:
        self._tokens = torch.from_numpy(validation.tokens.astype(np.int64))
        self._starts = torch.from_numpy(validation.document_starts.astype(np.int64))
        self.ledger = Ledger(validation)
        self.group = group
        self._observer = observer
        self._refusal: RuleBroken | None = None
        self._mixture: Mixture | None = None
        self.documents = "isolated"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """A copy would be a second ledger, to try things out on: there is one pass."""
        raise self._refuse(
            "C4", "a scorer cannot be copied: the text is scored once, and not tried out on a copy first"
        )

    @property
    def refusal(self) -> RuleBroken | None:
        """Why nothing that this scorer says counts any more; None while nothing was refused."""
        return self._refusal

    @property
    def num_documents(self) -> int:
        """Documents in the validation text."""
        return self.ledger.num_documents

    def span(self, document: int) -> tuple[int, int]:
        """First token of `document`, and one past the last position it is charged for."""
        return int(self.ledger.starts[document]), int(self.ledger.ends[document])

    def document_starts(self) -> Tensor:
        """First token of every document of the text, int64 [d], also after `join_documents`."""
        return self._starts.clone()

    def join_documents(self) -> None:
        """The policy `documents: joined`: the whole text is one document, as in the records before PR 1530.

        Only before anything is scored (ValueError). What is scored is still reported by document.
        """
        self.ledger.join()
        self.documents = "joined"

    def mix(self, experts: Experts | None) -> None:
        """From now on `experts` are mixed into every distribution before it is charged; None or none of them: nothing.

        Experts that keep what they learned from other documents make `documents` "remembered", unless it is joined.
        Only before anything is scored (ValueError).
        """
        if self.ledger.running().tokens:
            raise ValueError("experts can be mixed in only before anything is scored")
        self._mixture = Mixture(experts, self._starts) if experts else None
        keeping = any(getattr(expert, "history", "document") != "document" for expert in (experts or {}).values())
        if keeping and self.documents == "isolated":
            self.documents = "remembered"

    def gains(self) -> dict[str, Gain]:
        """What each expert did, over all processes of the group, which must ask together."""
        found = self._mixture.gains if self._mixture is not None else {}
        sums = torch.tensor([[gain.positions, gain.nats] for gain in found.values()], dtype=torch.float64)
        totals = self.group.sum_(sums.to(self.group.device)).tolist() if found else []
        return {name: Gain(int(positions), nats) for name, (positions, nats) in zip(found, totals, strict=True)}

    def open(self, start: int, end: int) -> None:
        """Announce that positions [start, end) are scored next under one state of the model, in any order and shared
        by the processes of the group. They may be read as context at once and learned from once they are scored."""
        self.ledger.open(start, end)

    def leave_out(self, positions: np.ndarray, policy: str) -> None:
        """The policy `coverage: <policy>`: `positions` are not scored. The total is then no score of the whole text,
        and says so. Raises ValueError when they were scored, or when the policy has no name of its own."""
        if policy == EVERY_TOKEN:
            raise ValueError(f"a policy that leaves positions out cannot be called {EVERY_TOKEN}")
        self.ledger.leave_out(positions, policy)

    @property
    def coverage(self) -> Coverage:
        """Which positions the entries so far stand for."""
        return self.ledger.coverage()

    def inputs(self, windows: Sequence[Window]) -> Tensor:
        """Input tokens of `windows`, int64 [B, widest], right-padded with 0, on the group's device.

        Everything before a window's score_start must have been scored; the tokens inside it come with it, since the
        prediction of each reads the ones before it. Raises RuleBroken (C3) otherwise.
        """
        for window in windows:
            start, end = self.span(window.document)
            if not start <= window.context_start < window.score_start < window.score_end <= end:
                raise ValueError(f"{window} does not lie inside document {window.document} = [{start}, {end})")
            if not self.ledger.readable(window.document, window.context_start, window.score_start):
                raise self._refuse("C3", f"{window} asks for tokens before score_start that were not scored yet")
        if self._observer is not None:
            self._observer.handed_out(windows)
        rows = [self._tokens[window.context_start : window.score_end - 1] for window in windows]
        return self._padded(rows)

    def score(self, windows: Sequence[Window], log_probs: Tensor, phase: int = 0) -> Tensor:
        """Enter the cost of `windows` in the ledger and return it, in nats [B, C], differentiable, 0 beyond a
        window's length.

        log_probs [B, C, V]: log of a full distribution for each scored position, row b aligned at its score_start.
        With experts (`mix`), what is charged is theirs, and what is returned is the cost without them, to learn from.
        Raises RuleBroken (C2) when one does not add up to 1, (C4) when a position was scored before or skipped.
        """
        longest = max(window.length for window in windows)
        if log_probs.ndim != 3 or log_probs.shape[0] != len(windows) or log_probs.shape[1] < longest:
            raise ValueError(
                f"log_probs {tuple(log_probs.shape)} must be [{len(windows)}, at least {longest}, vocabulary]"
            )
        columns = torch.arange(log_probs.shape[1], device=log_probs.device)
        lengths = torch.tensor([window.length for window in windows], device=log_probs.device)
        valid = columns < lengths[:, None]
        charged = log_probs if self._mixture is None else self._mixed(self._mixture, windows, log_probs)
        self._check_normalised(charged, valid)
        if self._observer is not None:
            self._observer.scored(windows, charged.detach())
        targets = self._padded([self._tokens[w.score_start : w.score_end] for w in windows], log_probs.shape[1])
        nats = _cost(log_probs, targets, valid)
        costs = nats if charged is log_probs else _cost(charged, targets, valid)
        entries = costs.detach().double().cpu().numpy()
        for row, window in enumerate(windows):
            try:
                self.ledger.write(window.document, window.score_start, entries[row, : window.length], phase)
            except RuleBroken as broken:
                self._refusal = broken
                raise
        return nats

    def revealed(self, document: int, start: int, end: int) -> Tensor:
        """Tokens [start, end) of `document`, int64 on the CPU. Raises RuleBroken (C3) unless all of them have been
        scored."""
        if not self.ledger.committed(document, start, end):
            raise self._refuse(
                "C3", f"tokens [{start}, {end}) of document {document} were asked for before they were scored"
            )
        return self._tokens[start:end].clone()

    def synchronise(self) -> None:
        """Take in what the other processes of the group have scored, so that all may learn from it."""
        if self.group.world_size == 1:
            return
        merged = torch.from_numpy(np.stack(self.ledger.fresh())).to(self.group.device)
        self.ledger.merge(*self.group.sum_(merged).cpu().numpy())

    def total(self) -> Total:
        """The ledger's sum. Raises RuleBroken unless every position was scored (C4) and nothing was ever refused.

        Positions that were declared as left out are missing from it: `coverage` says how many.
        """
        if self._refusal is not None:
            raise self._refusal
        if not self.ledger.complete():
            raise RuleBroken("C4", "some positions were never scored")
        return self.ledger.total()

    def _mixed(self, mixture: Mixture, windows: Sequence[Window], log_probs: Tensor) -> Tensor:
        """`log_probs` with the experts' part; they are given each token after they were asked about its position."""
        targets = [self._tokens[window.score_start : window.score_end].tolist() for window in windows]
        try:
            return mixture.mix(windows, log_probs, targets, [partial(self._context, w.document) for w in windows])
        except RuleBroken as broken:
            self._refusal = broken
            raise

    def _context(self, document: int, start: int, end: int) -> list[int]:
        """Tokens [start, end) of `document`, when they may be read as context; RuleBroken (C3) otherwise."""
        if not self.ledger.readable(document, start, end):
            raise self._refuse("C3", f"experts asked for tokens [{start}, {end}), which were not scored yet")
        return [int(token) for token in self._tokens[start:end]]

    def _padded(self, rows: Sequence[Tensor], width: int | None = None) -> Tensor:
        out = torch.zeros(len(rows), width or max(len(row) for row in rows), dtype=torch.int64)
        for index, row in enumerate(rows):
            out[index, : len(row)] = row
        return out.to(self.group.device)

    def _refuse(self, condition: str, message: str) -> RuleBroken:
        self._refusal = RuleBroken(condition, message)
        return self._refusal

    @torch.no_grad()
    def _check_normalised(self, log_probs: Tensor, valid: Tensor) -> None:
        judged = log_probs.detach().float()
        miss = torch.logsumexp(judged, dim=-1)[valid].abs().max()
        if not miss <= NORMALISATION_TOLERANCE:
            raise self._refuse(
                "C2",
                f"a distribution misses 1 by {float(miss):.3g} nats; hand in log-probabilities of the whole vocabulary",
            )
        if not bool(torch.isfinite(judged).all(dim=-1)[valid].all()):
            raise self._refuse("C2", "a distribution gives some token no chance at all (log-probability not finite)")


def _cost(log_probs: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Nats [B, C] of targets int64 [B, C] under log_probs [B, C, V]; 0 where not valid."""
    nats = -log_probs.gather(-1, targets[..., None]).squeeze(-1).float()
    return torch.where(valid, nats, 0.0)
