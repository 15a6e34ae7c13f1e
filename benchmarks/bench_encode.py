"""Encoding with bytes per token: the front end against a plain reference that does what the published preparation
scripts do, one document and one character at a time.

    python benchmarks/bench_encode.py [--model FILE] [--megabytes N]

The reference spells CaseOps with a loop over characters, asks SentencePiece for the surfaces of each document
and walks the characters of the surfaces. Both must give the same ids and bytes before anything is reported. Text: the
embedded corpus; tokenizers: trained on it, and with --model an existing SentencePiece model (a CaseOps vocabulary
encodes text without capitals best). Prints CPU seconds per MB of one core, and reference / front end. "first" meets
every word of the corpus for the first time, "again" does not; the ratio is that of the first. Building the tables is
apart ("tables", seconds a process).
"""

import argparse
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pgolf.console import Silent
from pgolf.data.encoding.caseops import ALLCAPS, CAPNEXT, ESC, OPERATORS, TITLE
from pgolf.data.encoding.frontend import FrontEnd
from pgolf.data.encoding.pretokens import Encoded
from pgolf.data.encoding.sentencepiece_model import Tokenizer
from pgolf.data.encoding.tokenizer import SentencePieceTokenizer, TokenizerFile
from pgolf.data.encoding.transform import CaseOps
from pgolf.data.sources.pydocs import PythonDocs

SAMPLE = 6  # The reference encodes every sixth document: it remembers nothing, so its cost per MB is the same.
BATCH = 64
MODEL = Path(__file__).parents[2] / "shared" / "golden" / "fineweb_8192_bpe_lossless_caps_caseops_v1_reserved.model"


def is_letter(character: str) -> bool:
    return "a" <= character <= "z" or "A" <= character <= "Z"


def spell(text: str) -> str:
    """CaseOps, one word and one character at a time."""
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


def reference(front_end: FrontEnd, text: str) -> tuple[list[int], list[int]]:
    """Ids and bytes of one document; whitespace that the normaliser strips goes to the first and the last token."""
    operators: Sequence[str] = ()
    transformed = text
    if front_end.transform is not None:
        transformed, operators = spell(text), OPERATORS
    assert isinstance(front_end.tokenizer, Tokenizer)
    proto = front_end.tokenizer.processor.encode(transformed, return_type="proto")
    ids = [piece.id for piece in proto.pieces]
    counts = count([piece.surface for piece in proto.pieces], operators)
    if counts and sum(counts) < len(text.encode()):
        counts[0] += proto.pieces[0].begin  # Bytes of the transformed text; whitespace is the same in both.
        counts[-1] += len(transformed.encode()) - proto.pieces[-1].end
    return ids, counts


def front_ends(texts: Sequence[str], model: Path | None) -> Iterator[tuple[str, FrontEnd]]:
    for transform in (None, CaseOps()):
        for normalization in ("lossless", "published"):
            symbols = () if transform is None else OPERATORS
            trainer = SentencePieceTokenizer(vocab_size=4096, normalization=normalization)
            training = texts if transform is None else map(transform.encode, texts)
            label = f"{'none' if transform is None else 'caseops':8}{normalization:10}"
            yield f"trained here  {label}", FrontEnd(transform, trainer.train(training, symbols))
            if model is not None:
                file = TokenizerFile(path=str(model), normalization=normalization)
                yield f"given file    {label}", FrontEnd(transform, file.tokenizer)


class Measured(NamedTuple):
    """CPU seconds: a process for `tables`, a MB for the others."""

    reference: float
    tables: float
    first: float
    again: float


def measure(front_end: FrontEnd, texts: Sequence[str]) -> Measured:
    """SystemExit when the reference and the front end differ."""
    started = time.process_time()
    front_end.encode_documents([" "])
    tables = time.process_time() - started
    first, encoded = encode(front_end, texts)
    again, _ = encode(front_end, texts)
    ends = np.cumsum([length for part in encoded for length in part.lengths])
    ids = np.concatenate([part.ids for part in encoded])
    counts = np.concatenate([part.token_bytes for part in encoded])
    sample = range(0, len(texts), SAMPLE)
    started = time.process_time()
    expected = [reference(front_end, texts[index]) for index in sample]
    theirs = (time.process_time() - started) / megabytes([texts[index] for index in sample])
    for index, (known_ids, known_counts) in zip(sample, expected, strict=True):
        part = slice(ends[index] - len(known_ids), ends[index])
        if ids[part].tolist() != known_ids or counts[part].tolist() != known_counts:
            raise SystemExit(f"document {index}: the front end and the reference differ")
    return Measured(theirs, tables, first, again)


def encode(front_end: FrontEnd, texts: Sequence[str]) -> tuple[float, list[Encoded]]:
    """(CPU seconds per MB, the batches)."""
    started = time.process_time()
    encoded = [front_end.encode_documents(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
    return (time.process_time() - started) / megabytes(texts), encoded


def megabytes(texts: Sequence[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL if MODEL.exists() else None, help="a SentencePiece model")
    parser.add_argument("--megabytes", type=float, default=20.0, help="use about this much of the corpus")
    options = parser.parse_args()
    source = PythonDocs(packages=["numpy", "torch"], standard_library=True, min_characters=200)
    texts: list[str] = []
    left = options.megabytes * 1e6
    for document in source.documents(Silent(), Counter()):
        if left > 0:
            texts.append(document.text)
            left -= len(document.text)
    print(f"{len(texts)} documents, {megabytes(texts):.1f} MB; CPU seconds of one core per MB")
    head = "".join(f"{name:>{width}}" for name, width in (("reference", 10), ("tables", 8), ("first", 8), ("again", 8)))
    print(f"{'tokenizer     transform normalization':36}{head}{'ratio':>8}")
    for label, front_end in front_ends(texts, options.model):
        found = measure(front_end, texts)
        figures = f"{found.reference:10.3f}{found.tables:8.2f}{found.first:8.4f}{found.again:8.4f}"
        print(f"{label:36}{figures}{found.reference / found.first:7.1f}x", flush=True)


if __name__ == "__main__":
    main()
