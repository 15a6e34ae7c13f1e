"""Text transforms: what is done to a document before it is tokenised, and undone after it is decoded."""

import string
from typing import Any, Literal, Protocol

from pgolf.data.encoding import caseops
from pgolf.errors import UserError


class Transform(Protocol):
    """A bijection on strings that writes operators of its own into the text.

    Attributes:
        operators: single characters that a tokenizer should hold as single pieces. They stand for no byte of the
            original text, except after the last of them, which says that the next character stands for itself.
        words: characters of which a run is looked at as one; a text may be cut anywhere else.
        touched: characters that are not always left as they are.
    """

    operators: tuple[str, ...]
    words: frozenset[str]
    touched: frozenset[str]

    def edges(self, character: str) -> tuple[frozenset[str], str]:
        """What the transformed text can begin with when the text begins with `character`, and what it ends with when
        the text ends with it."""

    def encode(self, text: str) -> str:
        """The text that is tokenised."""

    def decode(self, text: str, *, malformed: Literal["refuse", "keep"] = "refuse") -> str:
        """Undo `encode`."""

    def identity(self) -> dict[str, Any]:
        """JSON values that determine the transform; `load_transform` takes them back."""


class CaseOps:
    """Capitals as operators before lower-case letters (PR #1729); see pgolf.data.encoding.caseops."""

    operators: tuple[str, ...] = caseops.OPERATORS
    words = frozenset(string.ascii_letters)
    touched = words | frozenset(operators)

    def edges(self, character: str) -> tuple[frozenset[str], str]:
        """A capital becomes an operator and a lower-case letter; an operator is escaped."""
        if character in self.operators:
            return frozenset(caseops.ESC), character
        if character in string.ascii_uppercase:
            return frozenset(caseops.TITLE + caseops.ALLCAPS), character.lower()
        return frozenset(character), character

    def encode(self, text: str) -> str:
        """The text with operators for capitals."""
        return caseops.encode(text)

    def decode(self, text: str, *, malformed: Literal["refuse", "keep"] = "refuse") -> str:
        """The original text; CaseOpsError where an operator does not parse, unless it is to be kept."""
        return caseops.decode(text, malformed=malformed)

    def identity(self) -> dict[str, Any]:
        """The published name of this encoding."""
        return {"kind": "lossless_caps_caseops_v1"}


def load_transform(identity: dict[str, Any] | None) -> Transform | None:
    """The transform with this identity; UserError when this version of pgolf does not know it."""
    if identity is None:
        return None
    if identity == CaseOps().identity():
        return CaseOps()
    raise UserError(
        f"the data was written with the text transform {identity}, which this version of pgolf does not know; "
        f"it knows {CaseOps().identity()}."
    )
