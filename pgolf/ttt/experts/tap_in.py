"""Where the latest tokens of a document stood in it before, what followed them then gets a share of the probability."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from pgolf.score.mixture import Proposals, Reader, entropy

GROWTH_BY_LENGTH, GROWTH_BY_VOTES, LARGEST_WEIGHT = 0.15, 0.20, 0.50


class TapIn:
    """p'(k) = (1 - w) p(k) + w [k = hint], with the hint from the longest match of the document with itself.

    Of all earlier places of the document that end with the same tokens as the text so far (at least min_match of
    them, counted up to max_match), the one that agrees longest gives the hint: the token behind it; the first of
    several. w = min(0.5, base (1 + 0.15 (length - min_match)) (1 + 0.20 ln votes)), where votes counts the places that
    the same token follows, and base is `weight` when the place lies in the model's window, else `weight_outside`. The
    hint must be among the model's `top_k` likeliest tokens and the model's entropy at least `least_entropy` nats.

    Source: PR 1555 (its V4 within the window and V6 outside). There the two are found apart; here the longest match
    wins wherever it is. Raises ValueError when a number is out of range.
    """

    def __init__(
        self,
        *,
        min_match: int,
        max_match: int,
        weight: float,
        weight_outside: float,
        top_k: int,
        least_entropy: float = 0.0,
    ) -> None:
        if not 1 <= min_match <= max_match < 2**15:
            raise ValueError(
                f"min_match={min_match} must lie between 1 and max_match={max_match}, which is below 32768"
            )
        if not (0 <= weight < 1 and 0 <= weight_outside < 1) or top_k < 1:
            raise ValueError(
                f"weight={weight} and weight_outside={weight_outside} must be at least 0 and below 1, top_k={top_k} at "
                "least 1"
            )
        self.min_match, self.max_match, self.top_k = min_match, max_match, top_k
        self.weight, self.weight_outside, self.least_entropy = weight, weight_outside, least_entropy

    def begin(self) -> Callable[[], Reader]:
        """Nothing is kept from one document to the next."""
        return lambda: _Matches(self.min_match, self.max_match)

    def bias(self, proposals: Proposals, log_probs: Tensor) -> Tensor:
        """The change of the hint's logit that gives it the share w: log(1 + w / ((1 - w) p(hint)))."""
        length, votes, outside = proposals.figures.unbind(-1)
        base = torch.where(outside > 0, self.weight_outside, self.weight)
        grown = base * (1 + GROWTH_BY_LENGTH * (length - self.min_match)) * (1 + GROWTH_BY_VOTES * votes.log())
        share = grown.clamp_max(LARGEST_WEIGHT)
        hinted = log_probs[proposals.rows, proposals.tokens]
        fires = torch.ones_like(share, dtype=torch.bool)
        if self.top_k < log_probs.shape[-1]:
            likelier = (log_probs[proposals.rows] > hinted[:, None]).sum(dim=-1)
            fires &= likelier < self.top_k
        if self.least_entropy > 0:
            fires &= entropy(log_probs[proposals.rows]) >= self.least_entropy
        # w / ((1 - w) p) may be too large for a float; its logarithm is not
        odds = share.log() - torch.log1p(-share) - hinted.double()
        return torch.where(fires, torch.logaddexp(torch.zeros_like(odds), odds), 0.0)

    def miniature(self) -> tuple["TapIn", str]:
        """Matches of one token, hints from among all."""
        small = TapIn(
            min_match=1,
            max_match=self.max_match,
            weight=self.weight,
            weight_outside=self.weight_outside,
            top_k=2**31,
            least_entropy=0.0,
        )
        return small, "matches from 1 token on"


class _Matches:
    """How long each place of a document agrees, backwards, with its end.

    With n tokens read, run[p] is the number of tokens up to p that equal the last ones, at most max_match. Another
    token makes it (run[p - 1] + 1) where p holds the same token, else 0: one pass over the document for each token.
    """

    def __init__(self, min_match: int, max_match: int) -> None:
        self._least, self._most = min_match, max_match
        self._tokens = np.zeros(256, np.int32)
        self._run = np.zeros(256, np.int16)
        self._count = 0

    def propose(self, seen: int) -> Sequence[tuple[float, ...]]:
        """(hint, length of the match, votes, 1 if it lies before the model's window else 0), or nothing.

        The place right before the last token does not count: what follows it is the last token itself.
        """
        runs = self._run[: max(0, self._count - 2)]
        if len(runs) == 0:
            return ()
        best = int(runs.argmax())
        length = int(runs[best])
        if length < self._least:
            return ()
        following = self._tokens[1 : len(runs) + 1]
        hint = following[best]
        votes = np.count_nonzero((runs >= self._least) & (following == hint))
        return ((int(hint), length, int(votes), float(best < self._count - seen)),)

    def observe(self, token: int) -> None:
        """Compare `token` with all before it."""
        count = self._count
        if count == len(self._tokens):
            self._tokens, self._run = (np.concatenate([one, np.zeros_like(one)]) for one in (self._tokens, self._run))
        if count:
            same = self._tokens[:count] == token
            self._run[1:count] = np.minimum(self._run[: count - 1] + 1, self._most) * same[1:]
            self._run[0] = same[0]
        self._tokens[count] = token
        self._count += 1
