"""The published evaluations through the strategies and the scorer here: loss, bits per byte, tokens and bytes.

Numbers are those of one rank, without a sum over ranks.
"""

import dataclasses
import math
import re
from typing import Any

import numpy as np
import torch

from pgolf.data.encoding.bytes import ByteTable
from pgolf.data.encoding.sentencepiece_model import Tokenizer
from pgolf.data.validation import BOS_ID
from pgolf.interop.parity import coverage
from pgolf.interop.parity.build import build_model
from pgolf.interop.parity.case import Array, Case, Comparison, Outcome, Unsupported
from pgolf.interop.parity.coverage import Positions
from pgolf.interop.parity.text import scored, text_of
from pgolf.model.gpt import GPT
from pgolf.score.ledger import Total
from pgolf.ttt.fixed import Chunked, Sliding

GRAD_ACCUM_TIMES_RANKS = 8
"""The published scripts run 8 // ranks micro-batches a rank and step, and size evaluation batches by it."""
ROWS = 16
"""Windows a forward; the results do not depend on it."""
LOSS = 1e-4
"""Of losses and bits per byte: fp32 sums of the scripts against float64 of theirs differ by 1e-5."""

_EVAL_VAL = re.compile(r"eval_val_ws(?P<ws>\d+)_rank(?P<rank>\d+)_(?P<rule>lut|sidecar)_(?P<plan>noloop|loop)")
_SLIDING_1626 = re.compile(r"eval_val_sliding_1626_stride(?P<stride>\d+)_bs\d+_(?P<plan>noloop|loop)")
_BASELINE = re.compile(r"eval_val_baseline_ws(?P<ws>\d+)_rank(?P<rank>\d+)")
_SLIDING = re.compile(r"eval_val_sliding_stride(?P<stride>\d+)_bs\d+_ws(?P<ws>\d+)_rank(?P<rank>\d+)")
PLANS = {"noloop": "plain", "loop": "looped"}


def published_evaluation(case: Case) -> Outcome:
    """eval_val of #1736 under both byte rules, and the sliding evaluation of #1626."""
    compare, meta = Comparison(), case.meta
    table = _table(case)
    for ours, theirs in (
        (table.base_bytes, "lut_base_bytes"),
        (table.leading_space, "lut_leading_space"),
        (table.is_boundary, "lut_is_boundary"),
    ):
        compare.exact(theirs, ours.astype(np.int64), case.arrays[theirs].astype(np.int64))
    length = meta["config"]["eval_seq_len"]
    kept = coverage.truncated_length(len(case.arrays["val_tokens_all"]), length)
    tokens = case.arrays["val_tokens_all"][:kept]
    charged = {"lut": _lut_bytes(table, tokens), "sidecar": case.arrays["val_bytes_all"][:kept].astype(np.int32)}
    model = build_model(str(meta["script"]), meta["config"], case.below("p/"))
    strategy: Chunked | Sliding
    for name, result in meta["results"].items():
        if found := _EVAL_VAL.fullmatch(name):
            world, rank = int(found["ws"]), int(found["rank"])
            rows = meta["val_batch_tokens"] // (_ranks_times_steps(world) * length)
            cut, strategy = chunk_of_rank(kept, length, rows, world, rank)
            part, part_bytes = tokens[cut], charged[found["rule"]][cut]
        elif found := _SLIDING_1626.fullmatch(name):
            if model.smear is not None:
                raise Unsupported(f"{name}: a smear gate, which #1626 does not have")
            strategy = Sliding(sequence_tokens=length, stride=int(found["stride"]), rows=ROWS, windows="over_text")
            part, part_bytes = tokens, charged["lut"]
        else:
            raise Unsupported(f"no rule for the result {name}")
        model.set_plan(PLANS[found["plan"]])
        total = scored(model, strategy, text_of(part, part_bytes, np.flatnonzero(part == BOS_ID))).total()
        compare.exact(f"{name}: tokens", total.tokens, int(result["token_count"]))
        compare.exact(f"{name}: bytes", total.bytes, int(result["byte_count"]))
        compare.exact(f"{name}: kept tokens", kept, result.get("n_val_tokens", kept))
        if total.tokens:
            _compare_total(compare, name, total, result["val_loss"], result["val_bpb"])
    compare.remarks.append(
        "eval_val under coverage=whole_batches: the text after a rank's last whole batch is not scored, as published"
    )
    return compare.outcome()


def chunk_of_rank(
    num_tokens: int, sequence_tokens: int, rows: int, world_size: int, rank: int
) -> tuple[slice, Chunked]:
    """The tokens that eval_val gives to a rank, and its walk over them: whole batches of `rows` sequences alone."""
    share = coverage.rows(num_tokens, sequence_tokens, world_size, rank)
    strategy = Chunked(
        sequence_tokens=sequence_tokens,
        rows=ROWS,
        documents="packed",
        batch_tokens=rows * sequence_tokens,
        coverage="whole_batches",
    )
    return slice(int(share[0]) - 1, int(share[-1]) + 1), strategy


def baseline_evaluation(case: Case) -> Outcome:
    """eval_val of the baseline and eval_val_sliding of 2026-03-19, both over the text as one document."""
    compare, meta = Comparison(), case.meta
    table, tokens = _table(case), case.arrays["val_tokens"]
    charged = _lut_bytes(table, tokens)
    length = meta["train_seq_len"]
    model = build_model("naive", meta["config"], case.below("p/"))
    text = text_of(tokens, charged, np.flatnonzero(tokens == BOS_ID))
    chunked = Chunked(sequence_tokens=length, rows=ROWS, documents="joined")
    rows = scored(model, chunked, text).ledger.nats
    twice = 0
    for name, (loss, bpb) in meta["results"].items():
        if found := _BASELINE.fullmatch(name):
            positions = coverage.rows(len(tokens), length, int(found["ws"]), int(found["rank"]))
            nats = rows[positions]
        elif found := _SLIDING.fullmatch(name):
            stride = int(found["stride"])
            sliding = Sliding(sequence_tokens=length, stride=stride, rows=ROWS, windows="over_text", documents="joined")
            nats, positions, again = _with_tail(
                model,
                scored(model, sliding, text).ledger.nats,
                tokens,
                length,
                stride,
                int(found["ws"]),
                int(found["rank"]),
            )
            twice += again
        else:
            raise Unsupported(f"no rule for the result {name}")
        total = Total(len(positions), int(charged[positions].sum()), float(nats.sum()))
        _compare_total(compare, name, total, loss, bpb)
    if twice:
        compare.remarks.append(
            f"the script of 2026-03-19 scores {twice} positions of the tails more than once, which the ledger refuses: "
            "the windows that the end of the text cuts short were summed beside it"
        )
    return compare.outcome()


def _with_tail(
    model: GPT, once: Array, tokens: Array, length: int, stride: int, world_size: int, rank: int
) -> tuple[Array, Positions, int]:
    """Nats and positions as eval_val_sliding of 2026-03-19 adds them up, and how many of them come from cut windows.

    `once`: the ledger of the strategy here, which holds what whole windows score. The windows that the end of the
    text cuts short score their last `stride` targets again, so they are tallied here.
    """
    targets = len(tokens) - 1
    starts = range(0, targets, stride)
    share = starts[len(starts) * rank // world_size : len(starts) * (rank + 1) // world_size]
    nats, again = [], 0
    for start in share:
        end = min(start + length, targets)
        first = start + max(end - start - stride, 0) if start else start
        if start + length <= targets:
            nats.append(once[first + 1 : end + 1])
            continue
        window = torch.from_numpy(tokens[start : end + 1].astype(np.int64))
        with torch.no_grad():
            logits = model.logits(model(window[None, :-1]))[0]
        costs = torch.nn.functional.cross_entropy(logits, window[1:], reduction="none")
        nats.append(costs[first - start :].double().numpy())
        again += len(nats[-1])
    positions = coverage.sliding_with_tail(len(tokens), length, stride, world_size, rank)
    return np.concatenate(nats), positions, again


def _compare_total(compare: Comparison, name: str, total: Total, loss: float, bpb: float) -> None:
    compare.close(f"{name}: loss", total.val_loss, loss, LOSS)
    compare.close(f"{name}: bits per byte", total.val_bpb, bpb, LOSS)
    compare.near(f"{name}: tokens per byte", total.tokens / total.bytes, bpb / loss * math.log(2), 1e-9)


def _table(case: Case) -> ByteTable:
    """The published table rule: a space after a boundary is not counted, although these models keep it."""
    table = ByteTable.of(Tokenizer.load(case.tokenizer_file()))
    return dataclasses.replace(table, space_after_boundary=False)


def _lut_bytes(table: ByteTable, tokens: Array) -> Array:
    """Bytes of every token by the table, int32 [n]; the first, which nothing precedes, is given and counts none."""
    counted: Any = table.token_bytes(tokens[:-1], tokens[1:])
    return np.concatenate([[0], counted]).astype(np.int32)


def _ranks_times_steps(world_size: int) -> int:
    return world_size * (GRAD_ACCUM_TIMES_RANKS // world_size)
