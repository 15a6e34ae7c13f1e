"""The text front end once more, one character at a time, straight from the published description."""

from collections.abc import Sequence

from pgolf.data.encoding.caseops import ALLCAPS, CAPNEXT, ESC, OPERATORS, TITLE
from pgolf.data.encoding.frontend import FrontEnd


class MalformedError(Exception):
    pass


def is_letter(character: str) -> bool:
    return "a" <= character <= "z" or "A" <= character <= "Z"


def spell(text: str) -> str:
    """CaseOps encoding."""
    out: list[str] = []
    position = 0
    while position < len(text):
        if not is_letter(text[position]):
            out.append(ESC + text[position] if text[position] in OPERATORS else text[position])
            position += 1
            continue
        end = position
        while end < len(text) and is_letter(text[end]):
            end += 1
        word = text[position:end]
        position = end
        if len(word) > 1 and word.isupper():
            out.append(ALLCAPS + word.lower())
            continue
        for index, letter in enumerate(word):
            if letter.isupper():
                out.append(TITLE if index == 0 else CAPNEXT)
            out.append(letter.lower())
    return "".join(out)


def read(text: str) -> str:
    """CaseOps decoding: the published state machine."""
    out: list[str] = []
    escaped = all_capitals = capital = in_word = False
    mode = ""
    for character in text:
        if escaped:
            if mode and not is_letter(character):
                raise MalformedError
            out.append(character)
            escaped, in_word = False, is_letter(character)
            all_capitals = all_capitals and in_word
        elif character == ESC:
            escaped = True
        elif character in (TITLE, ALLCAPS):
            if in_word or mode or capital:
                raise MalformedError
            mode = character
        elif character == CAPNEXT:
            if capital:
                raise MalformedError
            capital = True
        elif is_letter(character):
            if in_word and mode:
                raise MalformedError
            out.append(character.upper() if mode or capital or all_capitals else character)
            all_capitals = all_capitals or mode == ALLCAPS
            mode, capital, in_word = "", False, True
        else:
            if mode or capital:
                raise MalformedError
            out.append(character)
            in_word = all_capitals = False
    if escaped or mode or capital:
        raise MalformedError
    return "".join(out)


def count(surfaces: Sequence[str], operators: Sequence[str]) -> list[int]:
    """Bytes of original text of each surface."""
    counts, escaped = [], False
    for surface in surfaces:
        total = 0
        for character in surface:
            if not escaped and character in operators:
                escaped = character == ESC
            else:
                total += len(character.encode())
                escaped = False
        counts.append(total)
    return counts


def encode(front_end: FrontEnd, text: str) -> tuple[list[int], list[int], list[int]]:
    """(ids, bytes by the bare surface rule, bytes with the stripped ends) of a SentencePiece front end, by the
    surfaces that the library gives. Not for literal U+2581 in lossless front ends."""
    operators: Sequence[str] = () if front_end.transform is None else OPERATORS
    transformed = spell(text) if operators else text
    proto = front_end.tokenizer.processor.encode(transformed, return_type="proto")
    ids = [piece.id for piece in proto.pieces]
    bare = count([piece.surface for piece in proto.pieces], operators)
    full = list(bare)
    if full:
        encoded = transformed.encode()
        full[0] += sum(count([encoded[: proto.pieces[0].begin].decode()], operators))
        full[-1] += sum(count([encoded[proto.pieces[-1].end :].decode()], operators))
    return ids, bare, full
