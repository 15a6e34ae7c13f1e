"""CaseOps: capitals spelled as operators before lower-case letters (PR #1729, "lossless_caps_caseops_v1", encoder v2).

"The NASA iPhone" becomes TITLE "the " ALLCAPS "nasa i" CAPNEXT "phone", so that a vocabulary needs each word once.
Only ASCII letters are touched; a word is a maximal run of them. Four private-use characters are the operators:

    TITLE    U+E001  the next letter is a capital (it begins a word)
    ALLCAPS  U+E002  every letter of the next word is a capital (the word has at least two letters)
    CAPNEXT  U+E003  the next letter is a capital (inside a word)
    ESC      U+E004  the next character stands for itself; written before an operator that is in the original text

`decode(encode(text)) == text` for every Python string, lone surrogates and operators included.
"""

import re
from functools import lru_cache
from typing import Literal

from pgolf.errors import UserError

TITLE, ALLCAPS, CAPNEXT, ESC = "\ue001", "\ue002", "\ue003", "\ue004"
OPERATORS = (TITLE, ALLCAPS, CAPNEXT, ESC)
NAMES = dict(zip(OPERATORS, ("TITLE", "ALLCAPS", "CAPNEXT", "ESC"), strict=True))
_ANY = f"[{TITLE}-{ESC}]"

# Both patterns begin with the one character that has to be looked at, so that the rest of a text is skipped quickly;
# what stands before that character is asked after it.
_ENCODE = re.compile(
    f"[A-Z{TITLE}-{ESC}](?:"
    f"(?<={_ANY})()"
    "|(?<![A-Za-z][A-Z])([A-Z]++)(?![A-Za-z])"  # a whole word of capitals
    "|(?<![A-Za-z][A-Z])()"  # the first letter of any other word
    "|)"  # a capital inside a word
)
_PREFIX = {1: ESC, 2: ALLCAPS, 3: TITLE, None: CAPNEXT}

# An operator with everything that it governs. A word operator is legal only where no word is running: after an ASCII
# letter (escaped or not) one is. ALLCAPS stays active to the end of the word; an escaped letter does not end the word
# and keeps its case. CAPNEXT waits for its letter across escaped characters.
_DECODE = re.compile(
    f"{ESC}(?s:.)"
    f"|{ALLCAPS}(?<![A-Za-z]{ALLCAPS}){CAPNEXT}?[A-Za-z]"
    f"(?:[A-Za-z]|{ESC}[A-Za-z]|{CAPNEXT}(?:{ESC}[A-Za-z])*+[A-Za-z])*+"
    f"|{TITLE}(?<![A-Za-z]{TITLE}){CAPNEXT}?[A-Za-z]"
    f"|{CAPNEXT}(?s:{ESC}.)*+[A-Za-z]"
    f"|{TITLE}|{ALLCAPS}|{CAPNEXT}|{ESC}"  # Does not parse.
)
_IN_CAPITAL_WORD = re.compile(f"{ESC}(.)|{CAPNEXT}|([a-z]+)")
LONGEST_KNOWN = 32  # Longer stretches are not remembered.
_ESCAPED = re.compile(f"(?s){ESC}(.)")


class CaseOpsError(UserError):
    """Text that the encoder cannot have written. `position` is the index of the operator that does not parse."""

    def __init__(self, position: int, reason: str):
        self.position, self.reason = position, reason
        super().__init__(f"not valid CaseOps text: at character {position}, {reason}.")


def encode(text: str) -> str:
    """Replace capitals by operators and lower-case letters."""
    return _ENCODE.sub(_encode_one, text)


def _encode_one(match: re.Match[str]) -> str:
    if match.lastindex == 1:
        return ESC + match[0]
    return _PREFIX[match.lastindex] + match[0].lower()


def decode(text: str, *, malformed: Literal["refuse", "keep"] = "refuse") -> str:
    """Undo `encode`.

    Besides what `encode` writes, every text is read that the published decoder reads (for example a capital that was
    left as it is, or an escaped letter).

    Args:
        malformed: "refuse" raises CaseOpsError at the first operator that does not parse; "keep" leaves such
            operators in the text (for what a model wrote).
    """
    return _DECODE.sub(_decode_or_keep if malformed == "keep" else _decode_or_refuse, text)


def _decode_or_refuse(match: re.Match[str]) -> str:
    unit = match[0]
    if len(unit) == 1:
        raise CaseOpsError(match.start(), _reason(match.string, match.start()))
    return _decode_known(unit) if len(unit) < LONGEST_KNOWN else _decode_unit(unit)


def _decode_or_keep(match: re.Match[str]) -> str:
    return match[0] if len(match[0]) == 1 else _decode_unit(match[0])


def _decode_unit(unit: str) -> str:
    """What an operator with everything that it governs stands for."""
    operator = unit[0]
    if operator == ALLCAPS:
        return _IN_CAPITAL_WORD.sub(lambda m: m[1] or (m[2] or "").upper(), unit[1:])
    if operator == CAPNEXT:
        return _ESCAPED.sub(r"\1", unit[1:-1]) + unit[-1].upper()
    return unit[-1] if operator == ESC else unit[-1].upper()


_decode_known = lru_cache(maxsize=1 << 15)(_decode_unit)


def _reason(text: str, position: int) -> str:
    operator, before, after = text[position], text[position - 1 : position], text[position + 1 : position + 2]
    name = NAMES[operator]
    if not after:
        return f"{name} ends the text, with nothing to act on"
    if operator in (TITLE, ALLCAPS) and before.isascii() and before.isalpha():
        return f"{name} stands inside a word; it may only stand before one"
    return f"{name} is followed by {NAMES.get(after, repr(after))} where a letter is needed"
