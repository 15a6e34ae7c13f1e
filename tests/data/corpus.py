"""A small corpus with everything that has ever broken a byte count."""

import json
import random
from pathlib import Path
from typing import Any

from hypothesis import settings

from pgolf.data.config import DataConfig
from pgolf.data.encoding.tokenizer import SentencePieceTokenizer
from pgolf.data.sources.text import TextFiles

# Disks are slow on shared machines: fewer examples, and no deadline for one.
ON_DISK = settings(deadline=None, max_examples=30)
PROSE = (
    "the model reads every token once and pays for what it could not foresee, so a longer "
    "document with some repetition costs less than its length in bytes would suggest"
)
WORDS = PROSE.split()


def small_documents(count: int) -> list[str]:
    """Deterministic documents with indentation, blank lines, digits, tabs and non-ASCII text."""
    generator = random.Random(7)
    texts = []
    for number in range(count):
        lines = [
            "    " * generator.randrange(3) + " ".join(generator.choices(WORDS, k=9))
            for _ in range(generator.randrange(2, 12))
        ]
        texts.append(f"Document {number}\n\n" + "\n".join(lines) + "\n\tnaïve café ☃ 😀\r\n")
    return texts


def write_corpus(path: Path, count: int = 120) -> Path:
    lines = [json.dumps({"text": text, "url": "unused"}) for text in small_documents(count)]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def small_config(corpus: Path, **overrides) -> DataConfig:
    settings: dict[str, Any] = {
        "name": "small",
        "source": TextFiles(paths=[str(corpus)]),
        "tokenizer": SentencePieceTokenizer(vocab_size=400),
        "val_fraction": 0.2,
        "shard_tokens": 1000,
    }
    return DataConfig(**(settings | overrides))
