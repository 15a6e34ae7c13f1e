"""What followed the same few tokens before becomes likelier, the more so the less the model knows."""

from collections.abc import Callable, Sequence
from math import log, log1p

from torch import Tensor

from pgolf.score.mixture import Proposals, Reader, entropy
from pgolf.ttt.experts.ngrams import Followers, History, readers


class NgramBias:
    """p'(k) is proportional to p(k) (1 + c(k) / smoothing)^(strength g): a product of the model and of a count model.

    c(k): how often k followed the longest context that occurred before, of those of `contexts` tokens (asked in this
    order). 1 + c / smoothing is, but for a factor that all tokens share, the estimate with `smoothing` added to every
    count. g, between 0 and 1, is the entropy of p over that of the uniform distribution: a sure model is left alone.
    history: what is counted, see `readers`.

    Source: the entropy-adaptive n-gram bias of the non-record experiments after PR 4 (gate g on the logits' bias).
    Raises ValueError when a number is out of range.
    """

    def __init__(
        self, *, contexts: list[int], strength: float, smoothing: float = 1.0, history: History = "document"
    ) -> None:
        if not contexts or min(contexts) < 1:
            raise ValueError(f"contexts={contexts}: give lengths of at least 1 token, the longest first")
        if strength < 0 or smoothing <= 0:
            raise ValueError(f"strength={strength} must be 0 or more, smoothing={smoothing} above 0")
        self.contexts, self.strength, self.smoothing, self.history = contexts, strength, smoothing, history

    def begin(self) -> Callable[[], Reader]:
        """Forget everything."""
        return readers(self.history, self.contexts, self._followed)

    def _followed(self, level: int, followers: Followers) -> Sequence[tuple[float, ...]]:
        return [(token, log1p(count / self.smoothing)) for token, count in followers.counts.items()]

    def bias(self, proposals: Proposals, log_probs: Tensor) -> Tensor:
        """strength times the gate times log(1 + c / smoothing)."""
        rows, place = proposals.rows.unique_consecutive(return_inverse=True)
        gate = (entropy(log_probs[rows]) / log(log_probs.shape[-1])).clamp(0.0, 1.0)[place]
        return self.strength * gate * proposals.figures[:, 0]

    def miniature(self) -> tuple["NgramBias", str]:
        """Contexts of one or two tokens."""
        contexts = sorted({min(length, 2) for length in self.contexts} | {1}, reverse=True)
        small = NgramBias(contexts=contexts, strength=self.strength, smoothing=self.smoothing, history=self.history)
        return small, f"counts after contexts of {' and '.join(map(str, contexts))} tokens"
