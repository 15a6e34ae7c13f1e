"""Documents: where they come from, which are kept, and on which side of the split they fall."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

from pgolf.console import Console

# SentencePiece writes a space as this character, so it cannot tell the two apart.
WORD_MARK = "\u2581"


@dataclass(frozen=True)
class Document:
    """One original text. `num_bytes` is its UTF-8 length, recorded where the text was gathered."""

    name: str
    text: str
    num_bytes: int

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the UTF-8 text, 64 hexadecimal digits."""
        return hashlib.sha256(self.text.encode()).hexdigest()


class Gathered(NamedTuple):
    """What a source gave: the documents kept, and how many were left out for each reason."""

    documents: list[Document]
    skipped: dict[str, int]


class Source(Protocol):
    """Where documents come from."""

    def identity(self) -> dict[str, Any]:
        """JSON values that change whenever the documents may change; must be cheap."""

    def gather(self, console: Console) -> Gathered:
        """Read every document; the same identity gives the same documents in the same order."""


def sift(texts: Iterable[tuple[str, str]], min_characters: int) -> Gathered:
    """Turn (name, text) pairs into documents and count what is left out.

    Left out: texts shorter than `min_characters`, texts with U+2581 (SentencePiece would give them
    back as spaces), texts with lone surrogates (they have no UTF-8 form), and repeated texts.
    """
    kept: list[Document] = []
    skipped: Counter[str] = Counter()
    seen: set[str] = set()
    for name, text in texts:
        if len(text) < max(1, min_characters):
            skipped["too_short"] += 1
        elif WORD_MARK in text:
            skipped["contains_u2581"] += 1
        else:
            try:
                num_bytes = len(text.encode())
            except UnicodeEncodeError:
                skipped["lone_surrogate"] += 1
                continue
            document = Document(name, text, num_bytes)
            if document.sha256 in seen:
                skipped["duplicate"] += 1
                continue
            seen.add(document.sha256)
            kept.append(document)
    return Gathered(kept, dict(sorted(skipped.items())))


SPLIT_RULE = "validation when the first 64 bits of SHA-256(text), as a fraction of 2**64, are below val_fraction"


def in_validation(sha256: str, val_fraction: float) -> bool:
    """SPLIT_RULE. It depends on the text alone, so equal texts always fall on the same side."""
    return int(sha256[:16], 16) < val_fraction * 2.0**64


def split(documents: Sequence[Document], val_fraction: float, order: str) -> tuple[list[Document], list[Document]]:
    """(training, validation) documents, by hash (`order="hash"`) or as the source gave them.

    Hash order is a shuffle without a seed: neighbours in a source are often about one subject, and
    a short training run that read them in that order would see one subject only.
    """
    ordered = sorted(documents, key=lambda d: d.sha256) if order == "hash" else list(documents)
    training = [d for d in ordered if not in_validation(d.sha256, val_fraction)]
    validation = [d for d in ordered if in_validation(d.sha256, val_fraction)]
    return training, validation
