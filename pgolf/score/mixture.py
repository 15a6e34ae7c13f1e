"""Experts: they follow the text as it is charged, and add what they know to a strategy's distributions.

An expert is asked about position p when it has been given the tokens before p and no other, and gets token p only
after that. So whatever it does, its part depends on the past alone (C1); it changes log-odds and the mixing
normalises, so the result is a full distribution (C2).

Which past, is the expert's to say. One that begins anew with every document reads the document's own text before p,
which is a code in whatever order documents are scored and on however many processes. One that keeps what it learned
from other documents has them in the order in which they were charged. Hints in the order of the file while documents
are charged in another order (PR 2130, 2135: the longest first) cannot be expressed, and are no code: with weights that
are shared, a long document is predicted from hints of an earlier short one, which is then predicted by weights that
learned from the long one. A decoder would need each of the two before the other, and the product of the two
predictions sums to more than 1 over pairs of documents.

Source: PR 1514 and 2130 (a tilt that is normalised again), PR 1555 (Tap-In).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from pgolf.score.ledger import RuleBroken

ReadContext = Callable[[int, int], list[int]]
"""(start, end) -> tokens [start, end) of the text, which may be read as context; raises RuleBroken otherwise."""


class Span(Protocol):
    """What mixing needs of a window, see `pgolf.score.scorer.Window`."""

    @property
    def context_start(self) -> int:
        """The first token that the model saw."""

    @property
    def score_start(self) -> int:
        """The first position that it predicted."""

    @property
    def score_end(self) -> int:
        """One past the last position that it predicted."""


@dataclass(frozen=True)
class Proposals:
    """Tokens that an expert proposes for some of N positions.

    rows int64 [m]: positions, ascending; tokens int64 [m]: each at most once a row; figures float64 [m, f]: what the
    expert's reader said with them.
    """

    rows: Tensor
    tokens: Tensor
    figures: Tensor


class Reader(Protocol):
    """Follows one document from its first token on."""

    def propose(self, seen: int) -> Sequence[tuple[float, ...]]:
        """For the next position: (token, figure, ...) of each token to change; none of them twice. seen: how many of
        the document's latest tokens lie in the model's own window."""

    def observe(self, token: int) -> None:
        """The token at that position."""


class Expert(Protocol):
    """Settings; what is learned lies in the readers, so an expert can be used again."""

    def begin(self) -> Callable[[], Reader]:
        """Forget everything. The function that is returned begins a document."""

    def bias(self, proposals: Proposals, log_probs: Tensor) -> Tensor:
        """What to add to the logit of each proposed token, float64 [m], given the model's log_probs [N, V]."""

    def miniature(self) -> tuple["Expert", str]:
        """The same with settings that make it act within a few short documents, and what was changed: for the audit."""


Experts = Mapping[str, Expert]


@dataclass
class Gain:
    """What an expert did: positions where it proposed something, and nats that it saved (below 0: it cost them)."""

    positions: int = 0
    nats: float = 0.0


@dataclass
class _Followed:
    """The readers of one document, one for each expert, and the next position that they have not seen."""

    readers: list[Reader]
    position: int


class Mixture:
    """Applies experts one after another, in alphabetical order of their names.

    documents int64 [d]: first tokens of the documents of the text, ascending. A document's readers are given its first
    token, which is known, and then asked about all positions after it up to the first token of the next.
    """

    def __init__(self, experts: Experts, documents: Tensor) -> None:
        self._experts = {name: experts[name] for name in sorted(experts)}
        self._begin = [expert.begin() for expert in self._experts.values()]
        self._starts = documents
        self._followed: dict[int, _Followed] = {}
        self.gains = {name: Gain() for name in self._experts}

    @torch.no_grad()
    def mix(
        self, windows: Sequence[Span], log_probs: Tensor, targets: Sequence[list[int]], context: Sequence[ReadContext]
    ) -> Tensor:
        """log_probs [B, C, V] of `windows` with all experts mixed in; the input itself where none has a proposal.

        targets: the tokens of each window, given to the readers one by one; context: how to read what lies before a
        window. Raises RuleBroken (C1) when a document is gone through backwards.
        """
        size = log_probs.shape[1]
        found: list[list[tuple[float, ...]]] = [[] for _ in self._experts]
        for row, (window, scored, read) in enumerate(zip(windows, targets, context, strict=True)):
            self._follow(window, row * size, scored, read, found)
        mixed = log_probs.detach().flatten(0, 1)
        aims = _aims(windows, targets, size, mixed.device)
        for (name, expert), rows in zip(self._experts.items(), found, strict=True):
            if not rows:
                continue
            proposals = _proposals(rows, mixed.device)
            before = mixed
            mixed = tilted(before, proposals, expert.bias(proposals, before))
            self.gains[name].positions += len(proposals.rows.unique())
            self.gains[name].nats += float((mixed[aims].double() - before[aims].double()).sum())
        return mixed.view_as(log_probs)

    def _follow(
        self, window: Span, row: int, scored: list[int], read: ReadContext, found: list[list[tuple[float, ...]]]
    ) -> None:
        """Ask and then tell the readers, position by position; proposals go to `found`."""
        position = window.score_start
        while position < window.score_end:
            document = int(torch.searchsorted(self._starts, position)) - 1
            first = int(self._starts[document])
            last = document + 1 == len(self._starts)
            end = window.score_end if last else min(window.score_end, int(self._starts[document + 1]) + 1)
            seen, offset = position - max(first, window.context_start), position - window.score_start
            inside = position > window.score_start  # the document begins in the window: its first token was just given
            followed = self._catch_up(document, first, position, partial(_given, scored, offset) if inside else read)
            tokens = scored[offset : offset + end - position]
            for reader, proposals in zip(followed.readers, found, strict=True):
                for index, token in enumerate(tokens):
                    for proposal in reader.propose(seen + index):
                        proposals.append((row + offset + index, *proposal))
                    reader.observe(token)
            followed.position = end
            if not last and end == int(self._starts[document + 1]) + 1:
                del self._followed[document]
            position = end

    def _catch_up(self, document: int, first: int, position: int, read: ReadContext) -> _Followed:
        """The document's readers, when they have seen all of it before `position`: its first token, and in a region
        that processes share what another process scores."""
        if document not in self._followed:
            self._followed[document] = _Followed([begin() for begin in self._begin], first)
        followed = self._followed[document]
        if followed.position > position:
            raise RuleBroken("C1", f"experts have read up to {followed.position} and are asked about {position}")
        if followed.position < position:
            if position > followed.position + 1:  # shared out by windows, in the order of the text: others ended those
                self._followed = {one: readers for one, readers in self._followed.items() if one >= document}
            for token in read(followed.position, position):
                for reader in followed.readers:
                    reader.observe(token)
            followed.position = position
        return followed


def tilted(log_probs: Tensor, proposals: Proposals, bias: Tensor) -> Tensor:
    """log_probs [N, V] with `bias` added at the proposed tokens, normalised again.

    With S the proposed tokens of a row: log p'(k) = log p(k) + b_k - log(1 + sum over j in S of p(j) (e^b_j - 1)). A
    row without proposals, or with bias 0, keeps its bits. Where less than half of the mass is left, which would be the
    difference of near numbers, it is added up over the vocabulary instead.
    """
    at = (proposals.rows, proposals.tokens)
    gained = log_probs[at].double().exp() * torch.expm1(bias)
    mass = torch.zeros(len(log_probs), dtype=torch.float64, device=log_probs.device)
    mass.index_add_(0, proposals.rows, gained)
    denominators = torch.log1p(mass)
    if bool((little := mass < -0.5).any()):
        place, inside = little.cumsum(0) - 1, little[proposals.rows]
        shifted = log_probs[little].double()
        shifted[place[proposals.rows[inside]], proposals.tokens[inside]] += bias[inside]
        denominators[little] = torch.logsumexp(shifted, dim=-1)
    mixed = log_probs - denominators.to(log_probs.dtype)[:, None]
    mixed[at] += bias.to(log_probs.dtype)
    return mixed


def entropy(log_probs: Tensor) -> Tensor:
    """Entropy of each row of log_probs [N, V], in nats, float64 [N]."""
    exact = log_probs.double()
    return -(exact.exp() * exact).sum(dim=-1)


def miniature(experts: Experts | None) -> tuple[Experts | None, str]:
    """The experts' own miniatures, and what was changed, to go behind a sentence on the strategy's."""
    small = {name: expert.miniature() for name, expert in (experts or {}).items()}
    made = {name: expert for name, (expert, _) in small.items()}
    return made or None, "".join(f"; {name}: {what}" for name, (_, what) in sorted(small.items()))


def _given(scored: list[int], offset: int, start: int, end: int) -> list[int]:
    """The tokens [start, end) right before `offset` in what was scored."""
    return scored[offset - (end - start) : offset]


def _proposals(rows: list[tuple[float, ...]], device: torch.device) -> Proposals:
    values = torch.tensor(rows, dtype=torch.float64)
    where = values[:, :2].to(torch.int64).to(device)
    return Proposals(where[:, 0], where[:, 1], values[:, 2:].to(device))


def _aims(
    windows: Sequence[Span], targets: Sequence[list[int]], size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Indices (row, token) of what really followed, of all scored positions of a flat [B * C, V]."""
    rows = [row * size + column for row, scored in enumerate(targets) for column in range(len(scored))]
    tokens = [token for scored in targets for token in scored]
    return torch.tensor(rows, device=device), torch.tensor(tokens, device=device)
