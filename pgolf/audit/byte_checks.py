"""B1 to B4: the denominator of bits per byte, each time by a way that the scorer does not go."""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pgolf.audit.checks import Check, decided, not_probed
from pgolf.audit.figures import Reported
from pgolf.data.dataset import Dataset, table_bytes
from pgolf.data.encoding.bytes import ByteTable, Kind
from pgolf.data.encoding.frontend import FrontEnd
from pgolf.data.encoding.sentencepiece_model import Tokenizer
from pgolf.data.sources.documents import WORD_MARK
from pgolf.data.validation import BOS_ID, ValidationSet
from pgolf.errors import UserError

DECODED_DOCUMENTS = 64
COUNTED_TOKENS = 2**16
CASE_PIECES: tuple[tuple[str, Kind], ...] = (
    ("<s>", "boundary"),
    (WORD_MARK, "normal"),
    (f"{WORD_MARK}x", "normal"),
    ("x", "normal"),
    (WORD_MARK * 2, "normal"),
    ("é", "normal"),
    (f"a{WORD_MARK}b", "normal"),
    ("<0xE2>", "byte"),
    ("<unused>", "boundary"),
)
CASES: tuple[tuple[str, str, int, int], ...] = (
    ("x", "x", 1, 1),
    ("x", f"{WORD_MARK}x", 2, 2),
    ("x", WORD_MARK, 1, 1),
    ("x", WORD_MARK * 2, 2, 2),
    ("x", "é", 2, 2),
    ("x", f"a{WORD_MARK}b", 3, 3),
    ("x", "<0xE2>", 1, 1),
    ("x", "<s>", 0, 0),
    ("x", "<unused>", 0, 0),
    ("<s>", "x", 1, 1),
    ("<s>", f"{WORD_MARK}x", 1, 2),
    ("<s>", WORD_MARK, 0, 1),
    (WORD_MARK, f"{WORD_MARK}x", 2, 2),
)
"""(previous, current, bytes of current where the model puts a dummy space before the text, and where it does not)."""


class BytesOfPieces(Protocol):
    """What a byte rule gives: bytes of `current` after `previous`."""

    def token_bytes(self, previous: npt.NDArray[np.integer], current: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
        """int32, of the shape of both."""


ByteRule = Callable[[Iterable[tuple[str, Kind]], bool], BytesOfPieces]


def denominator(validation: ValidationSet, dataset: Dataset | None) -> Check:
    """B1: over all documents the bytes charged to their tokens against their text; in a sample token by token."""
    charged = np.add.reduceat(validation.token_bytes.astype(np.int64), validation.document_starts)
    misses = np.abs(charged - validation.document_bytes)
    ratio = charged.sum() / max(1, validation.document_bytes.sum())
    detail = (
        f"{int(charged.sum())} bytes charged to the tokens of all {len(charged)} documents, "
        f"{int(validation.document_bytes.sum())} counted in the original text (ratio {ratio:.6f})"
    )
    off = 0
    if dataset is not None and dataset.front_end.lossless:
        sample = validation.token_bytes[:COUNTED_TOKENS]
        off = int((dataset.front_end.count_bytes(validation.tokens[: len(sample)]) != sample).sum())
        detail += f"; of {len(sample)} tokens {off} stand for other bytes than their ids tell"
    return decided("B1", not misses.any() and not off, len(charged), float(max(misses.max(), off)), detail)


def round_trip(validation: ValidationSet, dataset: Dataset | None) -> Check:
    """B2: the first documents, decoded, against the hashes of their originals."""
    if dataset is None:
        return not_probed("B2", "there is no prepared data set beside the validation text")
    if not dataset.front_end.lossless:
        return not_probed("B2", "the tokenizer normalises, as published: its tokens do not spell the original")
    rows = dataset.index("val").rows
    ends = np.append(validation.document_starts[1:], len(validation.tokens))
    count = min(DECODED_DOCUMENTS, len(rows), len(ends))
    wrong = 0
    for document in range(count):
        ids = validation.tokens[validation.document_starts[document] : ends[document]]
        text = dataset.decode(ids.tolist(), malformed="keep").encode()
        wrong += hashlib.sha256(text).digest() != rows["sha256"][document].tobytes()
    detail = f"of {count} documents {wrong} do not decode to their original"
    return decided("B2", wrong == 0 and count > 0, count, float(wrong), detail)


def single_tokens(dataset: Dataset | None, rule: ByteRule = ByteTable.from_pieces) -> Check:
    """B3: pieces with known bytes under `rule`, a vocabulary without the lone space, and every piece of the data
    set's."""
    names = [name for name, _ in CASE_PIECES]
    previous = np.array([names.index(before) for before, *_ in CASES])
    current = np.array([names.index(after) for _, after, *_ in CASES])
    wrong = []
    for column, dummy_prefix in ((2, True), (3, False)):
        got = rule(CASE_PIECES, dummy_prefix).token_bytes(previous, current).tolist()
        wrong += [
            f"{case[1]!r} after {case[0]!r} is charged {value} bytes, not {case[column]}"
            for case, value in zip(CASES, got, strict=True)
            if value != case[column]
        ]
    try:
        rule([piece for piece in CASE_PIECES if piece[0] != WORD_MARK], True)
    except UserError:
        refused = True
    else:
        refused = False
    if not refused:
        wrong.append("a vocabulary without a lone space, whose bytes would count three times, is taken")
    probed = 2 * len(CASES) + 1
    if dataset is not None:
        pieces, more = _vocabulary(dataset.front_end)
        probed, wrong = probed + pieces, wrong + more
    detail = "; ".join(wrong[:3]) or "every piece has the bytes that it spells"
    return decided("B3", not wrong, probed, float(len(wrong)), detail)


def _vocabulary(front_end: FrontEnd) -> tuple[int, list[str]]:
    """How many pieces of a vocabulary could be charged alone, and a sentence for each that is charged wrong bytes."""
    tokenizer = front_end.tokenizer
    if front_end.transform is not None and not front_end.lossless:
        return 0, []  # no rule for single ids: operators are charged by the text around them
    count = front_end.count_bytes if front_end.lossless else lambda ids: table_bytes(front_end, ids)
    plain = next(i for i in range(4, front_end.vocab_size) if tokenizer.piece_bytes[i].isalnum())
    pieces, wrong = 0, []
    for token in range(front_end.vocab_size):
        spelled = _spelling(front_end, token)
        if spelled is None:
            continue
        pieces += 1
        got = int(count(np.array([BOS_ID, plain, token], np.uint16))[2])
        if got != len(spelled):
            wrong.append(f"piece {token} {front_end.piece(token)!r} is charged {got} bytes, not {len(spelled)}")
    return pieces, wrong


def _spelling(front_end: FrontEnd, token: int) -> bytes | None:
    """What a piece spells by its printed form; None when its bytes depend on what comes before or after it."""
    tokenizer, printed = front_end.tokenizer, front_end.piece(token)
    if not isinstance(tokenizer, Tokenizer):
        return None if front_end.transform is not None else tokenizer.piece_bytes[token]
    processor = tokenizer.processor
    if processor.is_unknown(token) and front_end.lossless:
        return None  # decodes to a mark of its own; with byte pieces no text is written with it
    if processor.is_control(token) or processor.is_unknown(token) or processor.is_unused(token):
        return b""
    if processor.is_byte(token):
        value = int(printed[3:5], 16)
        return None if front_end.lossless and value >= 0x80 else bytes([value])
    if any(operator in printed for operator in front_end.operators):
        return None
    return printed.replace(WORD_MARK, " ").encode()


def self_consistency(validation: ValidationSet, reported: Mapping[str, Reported]) -> Check:
    """B4: the bytes that the figures imply against the text's own."""
    if not reported:
        return not_probed("B4", "no scoring of the whole text is at hand")
    text = int(validation.document_bytes.sum())
    implied = {stage: _implied_bytes(one) for stage, one in reported.items()}
    worst = max(implied, key=lambda stage: abs(implied[stage] - text))
    apart = abs(implied[worst] - text)
    detail = f"{worst}: loss, tokens and bits per byte imply {implied[worst]:.1f} bytes, the text has {text}"
    measured = apart if math.isfinite(apart) else None
    return decided("B4", apart <= 1e-6 * max(1, text), len(implied), measured, detail)


def _implied_bytes(figures: Reported) -> float:
    """Bytes of text that the figures speak of; infinitely many when nothing is said to have cost anything."""
    if figures.val_bpb <= 0:
        return math.inf
    return figures.val_loss / math.log(2) * figures.tokens / figures.val_bpb
