"""Validation texts with wrong bytes or wrong tokens, and figures that do not belong to their text."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from pgolf.audit import byte_checks
from pgolf.audit.checks import Check
from pgolf.audit.figures import Reported
from pgolf.data.dataset import Dataset
from pgolf.data.encoding.bytes import ByteTable, Kind
from pgolf.data.sources.documents import WORD_MARK
from pgolf.data.validation import ValidationSet

TextProbe = Callable[[Dataset], list[Check]]


@dataclass(frozen=True)
class TwiceTable(ByteTable):
    """Bytes per id in which the leading space is in the piece's own bytes and counted again (PR 1545, 1719, 1734)."""

    @classmethod
    def from_pieces(cls, pieces: Iterable[tuple[str, Kind]], dummy_prefix: bool) -> ByteTable:
        """The table of `ByteTable`, one byte too many for every piece that begins with a word mark."""
        right = ByteTable.from_pieces(list(pieces), dummy_prefix)
        return replace(right, base_bytes=right.base_bytes + right.leading_space)


def wordless(pieces: Iterable[tuple[str, Kind]], dummy_prefix: bool) -> ByteTable:
    """A rule that takes a vocabulary without a lone space, whose spaces then count three bytes (PR 755, 897)."""
    return ByteTable.from_pieces([*pieces, (WORD_MARK, "normal")], dummy_prefix)


def checks_of(
    dataset: Dataset, validation: ValidationSet | None = None, rule: byte_checks.ByteRule | None = None
) -> list[Check]:
    """B1 to B3 of a text that claims to be that of `dataset`."""
    text = validation or dataset.validation()
    tokens = byte_checks.single_tokens(dataset, rule or ByteTable.from_pieces)
    return [byte_checks.denominator(text, dataset), byte_checks.round_trip(text, dataset), tokens]


def twice_counted_space(dataset: Dataset) -> list[Check]:
    """Every piece that begins with a space is charged one byte more."""
    text = dataset.validation()
    leading = np.array([dataset.front_end.piece(token).startswith(WORD_MARK) for token in range(dataset.vocab_size)])
    more = leading[text.tokens].astype(np.int32)
    return checks_of(dataset, replace(text, token_bytes=text.token_bytes + more), TwiceTable.from_pieces)


def shifted_sidecar(dataset: Dataset) -> list[Check]:
    """Each token is charged the bytes of the one before it (a byte sidecar without the place of the first BOS)."""
    text = dataset.validation()
    return checks_of(dataset, replace(text, token_bytes=np.roll(text.token_bytes, 1)))


def shifted_within_documents(dataset: Dataset) -> list[Check]:
    """As `shifted_sidecar`, but no document gains or loses a byte: only token by token can it be seen."""
    text = dataset.validation()
    ends = np.append(text.document_starts[1:], len(text.tokens))
    parts = [np.roll(text.token_bytes[a:b], 1) for a, b in zip(text.document_starts, ends, strict=True)]
    return checks_of(dataset, replace(text, token_bytes=np.concatenate(parts)))


def other_words(dataset: Dataset) -> list[Check]:
    """Tokens of as many bytes that spell something else (text that was changed before it was tokenised: PR 1578)."""
    text = dataset.validation()
    tokens = text.tokens.copy()
    sizes = np.array([len(spelled) for spelled in dataset.front_end.tokenizer.piece_bytes])
    place = next(i for i, token in enumerate(tokens) if token >= 4 and (sizes == sizes[token]).sum() > 1)
    alike = np.flatnonzero(sizes == sizes[tokens[place]])
    tokens[place] = next(token for token in alike if token >= 4 and token != tokens[place])
    return checks_of(dataset, replace(text, tokens=tokens))


def spaces_of_three_bytes(dataset: Dataset) -> list[Check]:
    """See `wordless`."""
    return checks_of(dataset, rule=wordless)


def other_denominator(dataset: Dataset) -> list[Check]:
    """Bits per byte over the bytes of the transformed text (PR 2071)."""
    text = dataset.validation()
    figures = Reported(val_loss=4.0, tokens=1000, val_bpb=4.0 / np.log(2) * 1000 / (text.document_bytes.sum() * 1.08))
    return [byte_checks.self_consistency(text, {"final": figures})]


BAD_TEXTS: dict[str, tuple[TextProbe, str]] = {
    "leading space counted twice": (twice_counted_space, "B1"),
    "leading space counted twice in the table": (twice_counted_space, "B3"),
    "spaces of three bytes": (spaces_of_three_bytes, "B3"),
    "byte sidecar off by one": (shifted_sidecar, "B1"),
    "byte sidecar off by one within documents": (shifted_within_documents, "B1"),
    "text changed before it was tokenised": (other_words, "B2"),
    "bytes of another text in the denominator": (other_denominator, "B4"),
}
"""name -> (its checks on a small data set, the one that must fail)."""
GOOD_TEXTS: dict[str, TextProbe] = {"text as it was prepared": partial(checks_of)}
