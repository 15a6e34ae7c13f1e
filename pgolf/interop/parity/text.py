"""Running a strategy on the text of a reference case."""

import random

import numpy as np
import torch

from pgolf.console import Silent
from pgolf.data.validation import BOS_ID, ValidationSet
from pgolf.distributed import Group
from pgolf.interop.parity.case import Array, Case
from pgolf.kernels.attend import sdpa
from pgolf.model.gpt import GPT
from pgolf.score.scorer import Observer, Scorer
from pgolf.ttt.strategy import Bench, Strategy

ALONE = Group(0, 1, torch.device("cpu"))
BENCH = Bench(0, sdpa, Silent(), "parity")


def text_of(tokens: Array, token_bytes: Array, document_starts: Array) -> ValidationSet:
    """A text whose bytes are those charged to its tokens. What lies before the first start is a document too: the
    share of a rank may begin in the middle of one."""
    starts = np.union1d([0], document_starts).astype(np.int64)
    return ValidationSet(
        tokens=tokens.astype(np.uint16),
        token_bytes=token_bytes.astype(np.int32),
        document_starts=starts,
        document_bytes=np.add.reduceat(token_bytes.astype(np.int64), starts),
        names=[f"document {index}" for index in range(len(starts))],
    )


def scored(model: GPT, strategy: Strategy, text: ValidationSet, observer: Observer | None = None) -> Scorer:
    """The scorer after `strategy` has walked `text`."""
    scorer = Scorer(text, ALONE, observer)
    strategy.run(model, scorer, BENCH)
    return scorer


def case_text(case: Case) -> ValidationSet:
    """The case's documents; bytes from its own count or else by its tables."""
    tokens, meta = case.arrays["val_tokens"], case.meta
    if meta.get("caseops") and "val_bytes" in case.arrays:
        charged = case.arrays["val_bytes"].astype(np.int32)
    else:
        base, space, edge = (case.arrays[f"lut_{key}"] for key in ("base_bytes", "leading_space", "is_boundary"))
        charged = base[tokens].astype(np.int32)
        charged[1:] += space[tokens[1:]] & ~edge[tokens[:-1]]
    charged[0] = 0  # given, so never charged
    text = text_of(tokens, charged, np.flatnonzero(tokens == BOS_ID))
    fraction = float(meta.get("val_doc_fraction", 1.0))
    if fraction >= 1.0:
        return text
    count = len(text.document_starts)
    chosen = random.Random(meta["h_seed"]).sample(range(count), max(1, round(count * fraction)))
    return chosen_documents(text, sorted(chosen))


def chosen_documents(text: ValidationSet, chosen: list[int]) -> ValidationSet:
    """Some documents of a text; the last is still charged for the start of the document behind it."""
    ends = np.append(text.document_starts[1:], len(text.tokens))
    parts = [np.arange(text.document_starts[document], ends[document]) for document in chosen]
    starts = np.cumsum([0, *(len(part) for part in parts)])[:-1]
    index = np.concatenate([*parts, np.arange(ends[chosen[-1]], len(text.tokens))[:1]])
    return text_of(text.tokens[index], text.token_bytes[index], starts)
