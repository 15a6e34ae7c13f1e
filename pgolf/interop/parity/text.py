"""Running a strategy on the text of a reference case."""

import numpy as np
import torch

from pgolf.console import Silent
from pgolf.data.validation import ValidationSet
from pgolf.distributed import Group
from pgolf.interop.parity.case import Array
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
