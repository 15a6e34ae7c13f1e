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

from pgolf.data.documents import WORD_MARK
from pgolf.data.sentencepiece_model import Tokenizer, lossless_model
from pgolf.errors import UserError

PROBE = "a"  # Put before a part of a text, so that it is not taken for the beginning.
LABELS = [bytes([label]) for label in range(1, 256)]
MOST_VISITS = 1 << 23  # nmt_nfkc has 225,000 keys; endings share nodes, so that damage can make circles.
MOST_NODES = 1024  # Looked at together: each has 255 places where a child may lie.

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

    def leaves(self, text: str) -> bool:
        """Whether nothing in `text` is replaced or collapsed."""
        return self.single.keys().isdisjoint(text) and self.continuing.isdisjoint(text) and "  " not in text

    def output(self, character: str) -> str | None:
        """What a character becomes wherever it stands; None when that depends on the characters before it."""
        return None if character in self.continuing else self.single.get(character, character)


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
    trie = np.frombuffer(charsmap, "<u4", trie_bytes // 4, 4).astype(np.int64)
    replacements = charsmap[4 + trie_bytes :]
    single: dict[str, str] = {}
    continuing: set[str] = set()
    for key, value in _entries(trie).items():
        characters = key.decode()
        if len(characters) == 1:
            single[characters] = replacements[value : replacements.index(b"\0", value)].decode()
        continuing.update(characters[1:])
    return Rules(single, frozenset(continuing))


def _entries(trie: npt.NDArray[np.int64]) -> dict[bytes, int]:
    """Every key of a double array with its value.

    A unit holds a label (bits 0-7, and bit 31 marks a value unit), "a value hangs here" (bit 8), and the distance to
    its children (bits 10-30, times 256 when bit 9 is set); a child lies at parent ^ distance ^ label.
    """
    labels = np.arange(1, 256)
    found: dict[bytes, int] = {}
    stack = [(np.zeros(1, np.int64), [b""])]
    visited = 0
    while stack:
        positions, keys = stack.pop()
        if len(positions) > MOST_NODES:
            stack.append((positions[MOST_NODES:], keys[MOST_NODES:]))
            positions, keys = positions[:MOST_NODES], keys[:MOST_NODES]
        visited += len(positions)
        if visited > MOST_VISITS:
            raise ValueError("they run in a circle")
        units = trie[positions]
        bases = positions ^ ((units >> 10) << ((units & 0x200) >> 6))
        for index in np.flatnonzero(units & 0x100).tolist():
            found[keys[index]] = int(trie[bases[index]]) & 0x7FFFFFFF
        children = bases[:, None] ^ labels
        children[children >= len(trie)] = 0
        parents, edges = np.nonzero((trie[children] & 0x800000FF) == labels)
        if len(parents):
            spelled = [
                keys[parent] + LABELS[edge] for parent, edge in zip(parents.tolist(), edges.tolist(), strict=True)
            ]
            stack.append((children[parents, edges], spelled))
    return found


class Normalizer:
    """The normaliser of one model, and the same vocabulary without it.

    Attributes:
        sibling: encodes text that is normalised already.
        separable: the model strips and collapses spaces and puts nothing before the text, as the published models
            do; only then is the normal form of parts reasoned about (see pgolf.data.pretokens).
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
        rules, forms, offsets, base = self.rules, [], [], 0
        for text in texts:
            if rules.leaves(text):
                form, begins = text, np.arange(len(text))
            else:
                form, begins = self.normal_form(PROBE + text)
                form, begins = form[1:], begins[1:-1] - 1
            forms.append(form)
            offsets.append(begins + base)
            base += len(text)
        return forms, np.concatenate([*offsets, [base]])
