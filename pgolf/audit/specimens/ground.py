"""A tiny model, a small text and a small prepared data set, on which specimens are tried."""

import json
import random
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pgolf.console import Silent
from pgolf.data.config import DataConfig
from pgolf.data.dataset import Dataset
from pgolf.data.encoding.tokenizer import SentencePieceTokenizer
from pgolf.data.sources.text import TextFiles
from pgolf.data.validation import ValidationSet
from pgolf.model.attention import CausalSelfAttention
from pgolf.model.gpt import GPT
from pgolf.model.head import SoftCap
from pgolf.model.mlp import LeakyReLUSquared
from pgolf.model.plan import Depth
from pgolf.model.roles import stream
from pgolf.model.rope import Rotary
from pgolf.model.smear import SmearGate

VOCABULARY = 64
TEXT_VOCABULARY = 400
LENGTHS = (36, 22, 40, 20, 30, 26)
WORDS = "a model that reads every token once pays for what it could not foresee and for nothing else".split()


def tiny_model(vocabulary: int = VOCABULARY, smear: bool = False) -> GPT:
    """A GPT of two random layers of width 16; `smear`: with a smear gate that reads past a BOS."""
    model = GPT(
        vocabulary,
        1,
        dim=16,
        qk_gain=2.0,
        softcap=partial(SoftCap, cap=30.0),
        embedding_std=0.05,
        layer_scale=True,
        skip_gates=True,
        depth=Depth(num_layers=2, loop_start=0, loop_end=0, num_loops=1, skips=True),
        attention=partial(
            CausalSelfAttention, num_heads=2, num_kv_heads=1, rope=Rotary(dims=4, base=1e4), exclude=None, gate=None
        ),
        mlp=partial(LeakyReLUSquared, multiple=2.0, slope=0.5),
        smear=partial(SmearGate, width=8, bos_id=None) if smear else None,
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=stream(1, f"audit/{name}")) * 0.2)
    model.set_plan("looped")
    return model.eval()


def small_text(lengths: tuple[int, ...] = LENGTHS) -> ValidationSet:
    """Random documents of a few different tokens, so that pairs of tokens come again; one or two bytes a token."""
    generator = np.random.default_rng(0)
    rows = [np.r_[1, generator.integers(4, 16, length - 1)] for length in lengths]
    tokens = np.concatenate(rows).astype(np.uint16)
    token_bytes = np.where(tokens == 1, 0, 1 + tokens % 2).astype(np.int32)
    starts = np.cumsum([0, *lengths[:-1]]).astype(np.int64)
    document_bytes = np.add.reduceat(token_bytes.astype(np.int64), starts)
    return ValidationSet(tokens, token_bytes, starts, document_bytes, [f"document {i}" for i in range(len(lengths))])


def small_dataset(directory: Path) -> Dataset:
    """Some hundred documents, prepared below `directory` as any others: a SentencePiece vocabulary of 400 ids, bytes
    of validation tokens beside them."""
    chance = random.Random(7)
    documents = [
        f"Number {number}.\n" + " ".join(chance.choices(WORDS, k=chance.randrange(20, 60))) + " naïve ☃\n"
        for number in range(120)
    ]
    directory.mkdir(parents=True, exist_ok=True)
    corpus = directory / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), "utf-8")
    config = DataConfig(
        name="specimen",
        source=TextFiles(paths=[str(corpus)]),
        tokenizer=SentencePieceTokenizer(vocab_size=TEXT_VOCABULARY),
        val_fraction=0.2,
        shard_tokens=1000,
        workers=1,
    )
    return config.prepare(directory, Silent())
