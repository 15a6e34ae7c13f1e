"""What followed each context before: exact counts, read as a document goes on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from pgolf.score.mixture import Reader

History = Literal["document", "scored"]
TOKEN_BYTES = 2
"""A token id as it stands in a context; ids lie below 65,536."""


@dataclass(slots=True)
class Followers:
    """The tokens that followed a context. top: the one that first reached the largest count; total: of all counts."""

    counts: dict[int, int]
    top: int
    total: int


class NgramCounts:
    """Context (its tokens, two bytes each) -> what followed it. Contexts are compared whole, so none are confused.

    A context that occurred once is kept as its follower alone: about 170 bytes each, most of a table.
    """

    def __init__(self) -> None:
        self._followers: dict[bytes, int | Followers] = {}

    def __len__(self) -> int:
        return len(self._followers)

    def find(self, context: bytes) -> Followers | None:
        """What followed `context`, None when it did not occur."""
        found = self._followers.get(context)
        return Followers({found: 1}, found, 1) if isinstance(found, int) else found

    def add(self, context: bytes, token: int) -> None:
        """`token` followed `context`. It becomes the top one only when it occurred more often than that."""
        found = self._followers.get(context)
        if found is None:
            self._followers[context] = token
            return
        if isinstance(found, int):
            found = self._followers[context] = Followers({found: 1}, found, 1)
        found.total += 1
        count = found.counts[token] = found.counts.get(token, 0) + 1
        if count > found.counts[found.top]:
            found.top = token


Answer = Callable[[int, Followers], Sequence[tuple[float, ...]]]
"""(index of the context length, what followed) -> proposals; none of them: the next length is asked."""


class NgramReader:
    """Asks for contexts of several `lengths`, in their order, until one gives an answer; then counts the token under
    all of them. A context does not reach over its document's start."""

    def __init__(self, counts: NgramCounts, lengths: Sequence[int], answer: Answer) -> None:
        self._counts, self._answer, self._lengths = counts, answer, lengths
        self._text = bytearray()
        self._contexts: list[tuple[int, bytes]] = []

    def propose(self, seen: int) -> Sequence[tuple[float, ...]]:
        """The answer of the first context that has one."""
        for index, context in self._contexts:
            followers = self._counts.find(context)
            if followers is not None and (answer := self._answer(index, followers)):
                return answer
        return ()

    def observe(self, token: int) -> None:
        """Count `token` where it stands, and go on behind it."""
        for _, context in self._contexts:
            self._counts.add(context, token)
        self._text += token.to_bytes(TOKEN_BYTES, "little")
        known = len(self._text)
        self._contexts = [
            (index, bytes(self._text[-length * TOKEN_BYTES :]))
            for index, length in enumerate(self._lengths)
            if length * TOKEN_BYTES <= known
        ]


def readers(history: History, lengths: Sequence[int], answer: Answer) -> Callable[[], Reader]:
    """What begins a document. history: `document` counts anew in each, so that neither the order of documents nor the
    number of processes matters; `scored` goes on counting over all documents that this process has gone through, in
    the order in which it charges them."""
    if history == "document":
        return lambda: NgramReader(NgramCounts(), lengths, answer)
    shared = NgramCounts()
    return lambda: NgramReader(shared, lengths, answer)
