"""One likely next token, where the text before it has been seen, is made likelier (the token-only n-gram tilt)."""

from collections.abc import Callable, Sequence

from torch import Tensor

from pgolf.score.mixture import Proposals, Reader
from pgolf.ttt.experts.ngrams import Followers, History, readers


class NgramTilt:
    """p'(k) is proportional to p(k) e^(b [k = hint]): the hint is what most often followed the tokens before.

    levels: [tokens of context, confidence, count], asked in this order; the first one whose context followed at least
    `count` times, the hint in at least the share `confidence` of them, gives the hint. boost: b, times the share when
    `by_confidence`. history: what is counted, see `readers`.

    Source: PR 2130 and 2135 (one level of 15 tokens, 0.8, boost 2.625), PR 1514 (five levels, boost 2 times the share).
    There hints come from all text before in the file, whatever is scored first; see `pgolf.score.mixture` on why that
    is no code. Their gates inside words and at the start of words read the token that is scored, which cannot be
    written as an expert; they are not here. Raises ValueError for levels that cannot be.
    """

    def __init__(
        self,
        *,
        levels: list[list[float]],
        boost: float,
        by_confidence: bool = False,
        history: History = "document",
    ) -> None:
        for level in levels:
            if len(level) != 3 or level[0] < 1 or level[0] != int(level[0]) or not 0 < level[1] <= 1 or level[2] < 1:
                raise ValueError(
                    f"levels has {level}: give [tokens of context (at least 1), confidence (above 0, at most 1), "
                    "count (at least 1)]"
                )
        if not levels:
            raise ValueError("levels is empty: give at least one [tokens of context, confidence, count]")
        if boost < 0:
            raise ValueError(f"boost={boost} must be 0 or more")
        self.levels, self.boost, self.by_confidence, self.history = levels, boost, by_confidence, history

    def begin(self) -> Callable[[], Reader]:
        """Forget everything."""
        return readers(self.history, [int(level[0]) for level in self.levels], self._hint)

    def _hint(self, level: int, followers: Followers) -> Sequence[tuple[float, ...]]:
        _, confidence, count = self.levels[level]
        share = followers.counts[followers.top] / followers.total
        if followers.total < count or share < confidence:
            return ()
        return ((followers.top, self.boost * share if self.by_confidence else self.boost),)

    def bias(self, proposals: Proposals, log_probs: Tensor) -> Tensor:
        """The boost."""
        return proposals.figures[:, 0]

    def miniature(self) -> tuple["NgramTilt", str]:
        """Contexts of one or two tokens, which come again within a few hundred."""
        levels = [[min(length, 2.0), min(share, 0.5), 1.0] for length, share, _ in self.levels]
        levels.append([1.0, 0.25, 1.0])
        small = NgramTilt(levels=levels, boost=self.boost, by_confidence=self.by_confidence, history=self.history)
        return small, "hints from contexts of at most 2 tokens"
