"""What a SentencePiece model does to text before it looks for pieces: its rules, and the normal form of a text.

The rules lie in the model as a double-array trie (Yata et al. 2007, in the layout of the Darts-clone library) from
UTF-8 keys to replacements. They are read here because two questions cannot be put to the library: which characters
can be the later part of a rule (a combining accent), and which leave nothing behind. Only text cut between characters
for which both answers are "no" has the same normal form in parts as in one.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pgolf.data.encoding.sentencepiece_model import Tokenizer, lossless_model
from pgolf.data.sources.documents import WORD_MARK
from pgolf.errors import UserError

PROBE = "a"  # Put before a part of a text, so that it is not taken for the beginning.
Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rules:
    """The replacement rules of a model.

    Attributes:
        single: replacement of each character that has one of its own.
        continuing: characters that stand at a later place in the key of some rule.
    """

    single: dict[str, str]
    continuing: frozenset[str]

    @cached_property
    def changing(self) -> frozenset[str]:
        """Every character that is not always left as it is."""
        return self.continuing | self.single.keys()

    @cached_property
    def spaces(self) -> str:
        """Every character that becomes a space, or several, wherever it stands."""
        return "".join(c for c in sorted({" ", *self.single}) if is_space(self.output(c)))

    def leaves(self, text: str) -> bool:
        """Whether nothing in `text` is replaced or collapsed."""
        return self.changing.isdisjoint(text) and "  " not in text

    def output(self, character: str) -> str | None:
        """What a character becomes wherever it stands; None when that depends on the characters before it."""
        return None if character in self.continuing else self.single.get(character, character)


def is_space(output: str | None) -> bool:
    """Whether a replacement is made of spaces."""
    return output is not None and output != "" and output.strip(" ") == ""


def read_rules(charsmap: bytes) -> Rules:
    """The rules in a model's precompiled character map (empty: none); UserError when it is damaged."""
    if not charsmap:
        return Rules({}, frozenset())
    try:
        return _read_rules(charsmap)
    except (ValueError, IndexError, struct.error) as error:
        raise UserError(f"the normalisation rules of the tokenizer model are damaged ({error}).") from error


def _read_rules(charsmap: bytes) -> Rules:
    (trie_bytes,) = struct.unpack_from("<I", charsmap)
    trie = _Trie(np.frombuffer(charsmap, "<u4", trie_bytes // 4, 4).astype(np.int64))
    replacements = charsmap[4 + trie_bytes :]
    firsts = trie.next_characters([0])
    single: dict[str, str] = {}
    for character, node in firsts:
        start = trie.value(node)
        if start is not None:
            single[character] = replacements[start : replacements.index(b"\0", start)].decode()
    continuing: set[str] = set()
    reached = {node for _, node in firsts}
    fresh = reached
    while fresh:
        followers = trie.next_characters(sorted(fresh))
        continuing.update(character for character, _ in followers)
        fresh = {node for _, node in followers} - reached  # Keys share their endings, so that nodes are met again.
        reached |= fresh
    return Rules(single, frozenset(continuing))


class _Trie:
    """A double array, int64 [units].

    A unit holds its label (bits 0-7; bit 31 marks a value), whether it has a value (bit 8), and the distance to its
    base (bits 10-30, times 256 when bit 9 is set). The child of label l lies at base ^ l, and the value at base.
    """

    def __init__(self, units: npt.NDArray[np.int64]):
        self.units = units
        self.bases = np.arange(len(units)) ^ ((units >> 10) << ((units & 0x200) >> 6))
        labels = units & 0x800000FF
        children = np.flatnonzero((labels > 0) & (labels < 256))
        parents_base = children ^ labels[children]
        order = np.argsort(parents_base, kind="stable")
        self.children, self.parents_base, self.labels = children[order], parents_base[order], labels[children][order]

    def value(self, node: int) -> int | None:
        """The value of the key that ends at a node."""
        return int(self.units[self.bases[node]]) & 0x7FFFFFFF if self.units[node] & 0x100 else None

    def next_characters(self, nodes: Sequence[int]) -> list[tuple[str, int]]:
        """Each character that can follow one of the nodes in a key, with the node that it leads to."""
        found: list[tuple[str, int]] = []
        paths = [(node, b"") for node in nodes]
        while paths:
            bases = self.bases[[node for node, _ in paths]]
            lows, highs = (np.searchsorted(self.parents_base, bases, side).tolist() for side in ("left", "right"))
            paths = [
                (int(self.children[index]), spelled + bytes([self.labels[index]]))
                for (_, spelled), low, high in zip(paths, lows, highs, strict=True)
                for index in range(low, high)
            ]
            found += [(spelled.decode(), node) for node, spelled in paths if len(spelled) == _utf8_length(spelled[0])]
            paths = [(node, spelled) for node, spelled in paths if len(spelled) < _utf8_length(spelled[0])]
        return found


def _utf8_length(lead: int) -> int:
    return 1 + (lead >= 0xC0) + (lead >= 0xE0) + (lead >= 0xF0)


class Normalizer:
    """The normaliser of one model, and the same vocabulary without it.

    Attributes:
        sibling: encodes text that is normalised already.
        separable: the model strips and collapses spaces and puts nothing before the text, as the published models
            do; only then is the normal form of parts reasoned about (see pgolf.data.encoding.pretokens).
    """

    def __init__(self, tokenizer: Tokenizer):
        spec = tokenizer.proto.normalizer_spec
        self.processor = tokenizer.processor
        self.charsmap: bytes = spec.precompiled_charsmap
        self.sibling = Tokenizer(lossless_model(tokenizer.model), tokenizer.origin)
        strips = spec.remove_extra_whitespaces and spec.escape_whitespaces and not spec.add_dummy_prefix
        self.separable: bool = strips and self.processor.normalize(PROBE) == PROBE

    @cached_property
    def rules(self) -> Rules:
        """The replacement rules."""
        return read_rules(self.charsmap)

    def normal_form(self, text: str) -> tuple[str, Offsets]:
        """The normal form, with spaces as spaces, and where in `text` each of its characters begins.

        Returns (n characters, int64 [n + 1]): the last entry is where the last character's text ends.
        """
        form, offsets = self.processor.normalize(text, with_offsets=True)
        return form.replace(WORD_MARK, " "), np.array(offsets, np.int64)

    def inner_forms(self, texts: Sequence[str]) -> tuple[list[str], Offsets]:
        """The normal forms of parts of texts that follow something other than a space, so that a first space stays.

        Returns (one form a text, int64 [characters of all forms + 1]: where in the texts, one after another, each of
        their characters begins). No text may begin with a character that is the later part of a rule.
        """
        leaves, spaces, normalize = self.rules.leaves, self.rules.spaces, self.processor.normalize
        forms: list[str] = []
        offsets: list[int] = []
        base = 0
        for text in texts:
            word = text.lstrip(spaces)
            if leaves(word):  # The run of spaces before it becomes one.
                forms.append(word if len(word) == len(text) else " " + word)
                offsets += [base][: len(forms[-1]) - len(word)]
                offsets += range(base + len(text) - len(word), base + len(text))
            else:
                form, begins = normalize(PROBE + text, with_offsets=True)
                forms.append(form[1:].replace(WORD_MARK, " "))
                offsets += [base - 1 + begin for begin in begins[1:-1]]
            base += len(text)
        return forms, np.array([*offsets, base], np.int64)
