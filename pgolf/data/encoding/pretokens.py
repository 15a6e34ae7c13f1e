"""Encoding each distinct stretch of text once.

A text is cut where neither the transform, nor the normaliser, nor any piece of the vocabulary can reach across; each
stretch (pretoken) then has the same tokens and bytes wherever it stands, so they are looked up instead of computed.

Why the cut changes nothing: byte-pair merges join two neighbours only when together they are a piece, and merges on
one side of a boundary that no piece spans do not depend on the other side. A boundary is known by the two characters
beside it: it is safe when no piece holds them side by side. (The order of merges is by score and then by place, so it
is the same within each part.) The normaliser is dealt with in `cut_rule`.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pgolf.data.encoding.normalizer import Normalizer, Rules, is_space
from pgolf.data.encoding.sentencepiece_model import Tokenizer
from pgolf.data.encoding.transform import Transform
from pgolf.data.sources.documents import WORD_MARK
from pgolf.errors import UserError

CODE_POINTS = 0x110000
MOST_CLASSES = 4096  # A table of this size squared is 16 MB; rarer classes share the one that is never cut.
MOST_PRETOKENS = 1 << 18
MOST_CHARACTERS = 1 << 24
SLOTS = 1 << 17
SHIFT = np.uint64(64 - 17)
SCATTER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio (Knuth's multiplicative hash).
BELOW = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)  # Masks of the first n bytes.


class Encoded(NamedTuple):
    """Encoded documents, one after another, without BOS.

    Attributes:
        ids: uint16 [n].
        token_bytes: uint16 [n]; bytes of original text each token stands for. They sum to the UTF-8 length of each
            document that has a token.
        lengths: int64 [documents]; tokens of each document. A document that the published normalisation empties has
            length 0: it cannot be charged to any token and must be left out.
    """

    ids: npt.NDArray[np.uint16]
    token_bytes: npt.NDArray[np.uint16]
    lengths: npt.NDArray[np.int64]


def pack(ids: npt.ArrayLike, token_bytes: npt.ArrayLike, lengths: npt.ArrayLike) -> Encoded:
    """Encoded from any integers; UserError when a count does not fit into a byte sidecar."""
    counts = np.asarray(token_bytes, np.int64)
    if counts.size and counts.max() > 65_535:
        raise UserError(
            f"a token would stand for {counts.max()} bytes of text (the normaliser collapses a long run of "
            "whitespace), and a byte sidecar holds at most 65535; leave such documents out."
        )
    return Encoded(np.asarray(ids).astype(np.uint16), counts.astype(np.uint16), np.asarray(lengths, np.int64))


def join(parts: Sequence[Encoded]) -> Encoded:
    """One after another."""
    if len(parts) == 1:
        return parts[0]
    return Encoded(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


@dataclass(frozen=True)
class CutRule:
    """Where a text may be cut.

    Attributes:
        classes: uint16 [0x110000]; class of each character.
        safe: bool [k * k]; a cut between a character of class i and one of class j is safe: safe[i * k + j].
        spaces: characters that the normaliser strips from both ends of a document; "" without a normaliser.
        starts: bool [k]; a stripped document that begins with a character of this class may be cut.
        ends: bool [k]; the same for the character that it ends with.
    """

    classes: npt.NDArray[np.uint16]
    safe: npt.NDArray[np.bool_]
    spaces: str
    starts: npt.NDArray[np.bool_]
    ends: npt.NDArray[np.bool_]

    def cuts(self, codes: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
        """bool [characters - 1]; whether the text may be cut after each character but the last."""
        classes = self.classes[codes].astype(np.int32)
        safe: npt.NDArray[np.bool_] = self.safe[classes[:-1] * len(self.starts) + classes[1:]]
        return safe

    def core(self, text: str) -> str | None:
        """The document without what the normaliser strips; None when it must be encoded whole, because it is empty
        then, or begins or ends with a character whose normal form depends on more than itself."""
        if not self.spaces:
            return text
        core = text.strip(self.spaces)
        if not core or not self.starts[self.classes[ord(core[0])]] or not self.ends[self.classes[ord(core[-1])]]:
            return None
        return core


class Edge(NamedTuple):
    """What a cut beside a character has to know.

    `right` holds the characters that its tokenised form can begin with, `left` the one that it ends with; None: never
    cut on that side. `word`: the transform looks at runs of such characters as one.
    """

    left: str | None
    right: frozenset[str] | None
    word: bool


def cut_rule(transform: Transform | None, tokenizer: Tokenizer, normalizer: Normalizer | None) -> CutRule | None:
    """The rule for this front end; None when nothing can be proven, so that documents are encoded whole.

    Nothing is proven for models other than byte-pair models, for user-defined pieces of several characters (they are
    found by a search of their own), and for normalisers that put a space before the text or keep repeated spaces.

    With a normaliser (`normalizer` is not None) no cut is made beside a character that is the later part of a
    replacement rule, that is replaced by nothing, or whose replacement mixes spaces with other characters; nor after
    a character that becomes a space. So every pretoken but the last is followed by something, every one but the first
    follows something that is not a space, and its normal form is that of `Normalizer.inner_form`.
    """
    pieces = [
        piece for piece in tokenizer.proto.pieces if piece.type in (piece.NORMAL, piece.USER_DEFINED, piece.UNUSED)
    ]
    merging = tokenizer.proto.trainer_spec.model_type == tokenizer.proto.trainer_spec.BPE
    searched = any(piece.type == piece.USER_DEFINED and len(piece.piece) > 1 for piece in pieces)
    if not merging or searched or not (normalizer is None or normalizer.separable):
        return None
    followers: dict[str, set[str]] = defaultdict(set)
    for piece in pieces:
        for before, after in zip(piece.piece, piece.piece[1:], strict=False):
            followers[before].add(after)
    rules = None if normalizer is None else normalizer.rules
    joined = set().union(*followers.values())
    special = {" ", WORD_MARK} | followers.keys() | joined
    special |= set() if transform is None else set(transform.touched)
    special |= set() if rules is None else rules.single.keys() | rules.continuing
    edges = {character: _edge(character, transform, rules) for character in sorted(special)}
    spaces = "" if rules is None else rules.spaces
    return _tabulate({c: _relevant(edge, followers, joined) for c, edge in edges.items()}, followers, spaces)


def _edge(character: str, transform: Transform | None, rules: Rules | None) -> Edge:
    heads, tail = (frozenset(character), character) if transform is None else transform.edges(character)
    word = transform is not None and character in transform.words
    if rules is None:
        if character == WORD_MARK:  # Spelled in bytes, which join nothing.
            return Edge("", frozenset(), word)
        return Edge(_mark(tail), frozenset(map(_mark, heads)), word)
    last, firsts = rules.output(tail), [rules.output(head) for head in heads]
    if not last or not all(firsts) or WORD_MARK in last:
        return Edge(None, None, word)
    if is_space(last):
        return Edge(None, frozenset(WORD_MARK), word)
    if any(output and " " in (output[0], output[-1]) for output in (last, *firsts)):
        return Edge(None, None, word)
    return Edge(last[-1], frozenset(first[0] for first in firsts if first), word)


def _mark(character: str) -> str:
    return WORD_MARK if character == " " else character


def _relevant(edge: Edge, followers: dict[str, set[str]], joined: set[str]) -> Edge:
    """The edge without characters that occur in no pair, so that most characters share a class."""
    left = edge.left if edge.left is None or edge.left in followers else ""
    right = None if edge.right is None else edge.right & joined
    return Edge(left, right, edge.word)


def _tabulate(edges: dict[str, Edge], followers: dict[str, set[str]], spaces: str) -> CutRule:
    """Number the classes (0: joins nothing, 1: never cut) and fill the table."""
    numbers = {Edge("", frozenset(), False): 0, Edge(None, None, False): 1}
    classes = np.zeros(CODE_POINTS, np.uint16)
    classes[0xD800:0xE000] = 1
    for character, edge in edges.items():
        if edge not in numbers and len(numbers) < MOST_CLASSES:
            numbers[edge] = len(numbers)
        classes[ord(character)] = numbers.get(edge, 1)
    columns: dict[str, list[int]] = defaultdict(list)
    for edge, number in numbers.items():
        for character in edge.right or ():
            columns[character].append(number)
    begins = np.array([edge.right is not None for edge in numbers])
    ends = np.array([edge.left is not None for edge in numbers])
    words = np.array([edge.word for edge in numbers])
    safe = ends[:, None] & begins[None, :] & ~(words[:, None] & words[None, :])
    for edge, number in numbers.items():
        for character in followers.get(edge.left or "", ()):
            safe[number, columns[character]] = False
    return CutRule(classes, safe.ravel(), spaces, begins, ends)


class Pretokens:
    """The tokens and bytes of every pretoken seen, up to a bound.

    Each pretoken has a number. Numbers are found in two ways: `numbers` is a dictionary of all of them; `keys` and
    `values` are a direct-mapped table of the short ones, whose characters fit into two 64-bit integers, so that most
    of a text is looked up without making a string.

    Args:
        encode: encodes distinct pretokens.
    """

    def __init__(self, encode: Callable[[Sequence[str]], Encoded]):
        self.encode = encode
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.numbers: defaultdict[str, int] = defaultdict(count().__next__)  # Numbers what it has not seen, in order.
        self.keys = np.zeros((2, SLOTS), np.uint64)
        self.values = np.zeros(SLOTS, np.int64)
        self.ids = np.empty(0, np.uint16)
        self.token_bytes = np.empty(0, np.uint16)
        self.starts, self.lengths = np.empty(0, np.int64), np.empty(0, np.int64)
        self.characters = 0

    def lookup(self, text: str, codes: npt.NDArray[np.uint32], ends: npt.NDArray[np.int64]) -> Encoded:
        """Tokens of a text (not empty) that is cut at `ends`, the last of which is its length.

        `codes` are the characters of the text. `lengths` of the result are the tokens of each pretoken.
        """
        if len(self.numbers) > MOST_PRETOKENS or self.characters > MOST_CHARACTERS:
            self.clear()
        starts = np.concatenate([[0], ends[:-1]])
        low, high = short_keys(codes, starts, ends)
        slots = ((low ^ high * SCATTER) * SCATTER) >> SHIFT
        numbers = self.values[slots]
        missed = np.flatnonzero((self.keys[0][slots] != low) | (self.keys[1][slots] != high) | (high == 0))
        words = [text[a:b] for a, b in zip(starts[missed].tolist(), ends[missed].tolist(), strict=True)]
        numbers[missed] = np.fromiter(map(self.numbers.__getitem__, words), np.int64, len(words))
        short = missed[high[missed] != 0]
        self.values[slots[short]] = numbers[short]  # Where two share a slot, the last stays, here and in the next line.
        self.keys[0][slots[short]], self.keys[1][slots[short]] = low[short], high[short]
        self._learn()
        lengths = self.lengths[numbers]
        index = np.repeat(self.starts[numbers] - (np.cumsum(lengths) - lengths), lengths)
        index += np.arange(len(index))
        return Encoded(self.ids[index], self.token_bytes[index], lengths)

    def _learn(self) -> None:
        """Encode the pretokens that were numbered since the last call."""
        missing = len(self.numbers) - len(self.lengths)
        if not missing:
            return
        new = list(islice(reversed(self.numbers), missing))[::-1]
        try:
            encoded = self.encode(new)
        except BaseException:
            self.clear()  # They are numbered, but nothing is known about them.
            raise
        ends = np.cumsum(encoded.lengths) + len(self.ids)
        self.starts = np.concatenate([self.starts, ends - encoded.lengths])
        self.lengths = np.concatenate([self.lengths, encoded.lengths])
        self.ids = np.concatenate([self.ids, encoded.ids])
        self.token_bytes = np.concatenate([self.token_bytes, encoded.token_bytes])
        self.characters += sum(map(len, new))


def short_keys(
    codes: npt.NDArray[np.uint32], starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Two uint64 [pretokens]; different pretokens differ in one of them.

    Up to fifteen characters below U+0100, a byte each, and their number in the top byte of the second. The second is
    0 for pretokens that are longer or hold other characters.
    """
    narrow = np.zeros(len(codes) + 16, np.uint8)
    narrow[:-16] = codes
    windows: npt.NDArray[np.uint64] = np.ndarray(
        (len(codes) + 8,), "<u8", narrow, strides=(1,)
    )  # Eight bytes from each.
    lengths = ends - starts
    low = windows[starts] & BELOW[np.minimum(lengths, 8)]
    high = windows[starts + 8] & BELOW[np.clip(lengths - 8, 0, 7)] | lengths.astype(np.uint64) << np.uint64(56)
    high[lengths > 15] = 0
    if codes.max() > 0xFF:
        wide_before = np.concatenate([[0], np.cumsum(codes > 0xFF)])
        high[wide_before[ends] > wide_before[starts]] = 0
    return low, high
