"""Documents: where they come from, which are kept, and on which side of the split they fall."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from pgolf.console import Console
from pgolf.data.sources.fingerprints import FileHashes
from pgolf.errors import UserError

# SentencePiece writes a space as this character, so it cannot tell the two apart.
WORD_MARK = "\u2581"

Split = Literal["train", "val"]
Duplicates = Literal["drop", "refuse"]


class Document(NamedTuple):
    """One original text.

    Attributes:
        name: as its source names it.
        text: the original.
        num_bytes: its UTF-8 length, counted where it was read.
        sha256: 32 bytes, of its UTF-8 form.
    """

    name: str
    text: str
    num_bytes: int
    sha256: bytes


class Placed(NamedTuple):
    """A document that is kept: its number in the order of the source, and its split."""

    number: int
    split: Split
    document: Document


class Source(Protocol):
    """Where documents come from."""

    def identity(self, hashes: FileHashes) -> dict[str, Any]:
        """JSON values that change whenever the documents may change."""

    def documents(self, console: Console, left_out: Counter[str]) -> Iterator[Document]:
        """Read the documents one after another; every call reads from the beginning and gives the same.

        What is left out is counted in `left_out`, by reason.
        """


def sift(texts: Iterable[tuple[str, str]], min_characters: int, left_out: Counter[str]) -> Iterator[Document]:
    """Turn (name, text) pairs into documents.

    Left out and counted: texts shorter than `min_characters`, and texts with lone surrogates (they have no UTF-8
    form, so no tokenizer can give them back).
    """
    for name, text in texts:
        if len(text) < max(1, min_characters):
            left_out["too_short"] += 1
            continue
        try:
            data = text.encode()
        except UnicodeEncodeError:
            left_out["lone_surrogate"] += 1
            continue
        yield Document(name, text, len(data), hashlib.sha256(data).digest())


@dataclass(frozen=True)
class SplitRule:
    """Which documents are held out: the first `val_docs` (the published rule), or a share chosen by hash.

    The share depends on the text alone, so equal texts always fall on the same side. ValueError unless exactly one
    of the two is set.
    """

    val_docs: int | None = None
    val_fraction: float | None = None

    def __post_init__(self) -> None:
        if (self.val_docs is None) == (self.val_fraction is None):
            raise ValueError(f"val_docs={self.val_docs} and val_fraction={self.val_fraction}: set exactly one of them")
        if self.val_docs is not None and self.val_docs < 1:
            raise ValueError(f"val_docs={self.val_docs} must be at least 1")
        if self.val_fraction is not None and not 0.0 < self.val_fraction < 1.0:
            raise ValueError(f"val_fraction={self.val_fraction} must lie between 0 and 1, both excluded")

    def split_of(self, number: int, sha256: bytes) -> Split:
        """The side of a document, from its number among those kept and the hash of its text."""
        if self.val_docs is not None:
            return "val" if number < self.val_docs else "train"
        assert self.val_fraction is not None
        return "val" if int.from_bytes(sha256[:8], "big") < self.val_fraction * 2.0**64 else "train"

    def description(self) -> dict[str, Any]:
        """JSON values for the manifest."""
        if self.val_docs is not None:
            rule = "the first val_docs documents of the source are validation, the rest is training"
            return {"rule": rule, "val_docs": self.val_docs}
        rule = "validation when the first 64 bits of SHA-256(text), as a fraction of 2**64, are below val_fraction"
        return {"rule": rule, "val_fraction": self.val_fraction}

    def refuse_empty(self, train: int, val: int, left_out: Counter[str]) -> None:
        """UserError when a split has no document."""
        found = train + val
        why = f" (left out: {in_words(left_out)})" if left_out else ""
        if not found:
            raise UserError(f"data.source gave no document{why}: name files that hold some (see data.source.paths).")
        if self.val_docs is not None and not (train and val):
            raise UserError(
                f"data.val_docs={self.val_docs} takes the first {self.val_docs} documents for validation, but the "
                f"source has only {found}{why}, which leaves none for training: set data.val_docs below {found}, or "
                "give more documents."
            )
        if not (train and val):
            raise UserError(
                f"none of the {found} documents falls in the {'validation' if train else 'training'} split with "
                f"data.val_fraction={self.val_fraction}; change it or give more documents."
            )


def place(
    documents: Iterable[Document], rule: SplitRule, duplicates: Duplicates, left_out: Counter[str]
) -> Iterator[Placed]:
    """Number the documents that are kept and put each into its split.

    Args:
        duplicates: "drop" keeps the first of equal texts and counts the others (it remembers 16 bytes of hash a
            document, about 100 MB of memory a million); "refuse" keeps repetitions inside one split and refuses a
            text that is in both. Under val_fraction equal texts are never in both.

    UserError for a text in both splits, and at the end when a split is empty.
    """
    seen: set[bytes] = set()
    validation: dict[bytes, str] = {}
    counts: Counter[Split] = Counter()
    for document in documents:
        if duplicates == "drop":
            if document.sha256[:16] in seen:
                left_out["duplicate"] += 1
                continue
            seen.add(document.sha256[:16])
        split = rule.split_of(counts.total(), document.sha256)
        if duplicates == "refuse" and rule.val_docs is not None:
            if split == "val":
                validation.setdefault(document.sha256, document.name)
            elif document.sha256 in validation:
                raise UserError(
                    f"the training document {document.name!r} has the same text as the validation document "
                    f"{validation[document.sha256]!r} (SHA-256 {document.sha256.hex()[:16]}...): a score on it would "
                    "be worthless. Remove one of them, or set data.duplicates=drop, which keeps the first of equal "
                    "texts."
                )
        yield Placed(counts.total(), split, document)
        counts[split] += 1
    rule.refuse_empty(counts["train"], counts["val"], left_out)


def in_words(left_out: Counter[str] | dict[str, int]) -> str:
    """`12 duplicate, 3 too_short`, or `none`."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()) if count) or "none"
