"""The data half of the published evaluations: what is scored, and how many bytes of text it stands for, exactly.

Counts are those of one rank, without a sum over ranks.
"""

import dataclasses
import math
import re
from typing import Any

import numpy as np

from pgolf.data.bytes import ByteTable
from pgolf.data.sentencepiece_model import Tokenizer
from pgolf.interop.parity import coverage
from pgolf.interop.parity.case import Array, Case, Comparison, Outcome, Unsupported
from pgolf.interop.parity.coverage import Positions

GRAD_ACCUM_TIMES_RANKS = 8
"""The published scripts run 8 // ranks micro-batches a rank and step, and size evaluation batches by it."""

_EVAL_VAL = re.compile(r"eval_val_ws(?P<ws>\d+)_rank(?P<rank>\d+)_(?P<rule>lut|sidecar)_(no)?loop")
_SLIDING_1626 = re.compile(r"eval_val_sliding_1626_stride(?P<stride>\d+)_bs\d+_(no)?loop")
_BASELINE = re.compile(r"eval_val_baseline_ws(?P<ws>\d+)_rank(?P<rank>\d+)")
_SLIDING = re.compile(r"eval_val_sliding_stride(?P<stride>\d+)_bs\d+_ws(?P<ws>\d+)_rank(?P<rank>\d+)")

RATIO_TOLERANCE = 1e-9
"""Of tokens per byte, implied by two printed float64 numbers."""


def published_evaluation(case: Case) -> Outcome:
    """eval_val of #1736 under both byte rules, and the sliding evaluation of #1626: tokens and bytes of each result."""
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
    tokens, sidecar = case.arrays["val_tokens_all"][:kept], case.arrays["val_bytes_all"][:kept]
    for name, result in meta["results"].items():
        if found := _EVAL_VAL.fullmatch(name):
            world, rank = int(found["ws"]), int(found["rank"])
            rows = meta["val_batch_tokens"] // (_ranks_times_steps(world) * length)
            positions = coverage.whole_batches(kept, length, rows, world, rank)
            charged = _lut_bytes(table, tokens, positions) if found["rule"] == "lut" else int(sidecar[positions].sum())
        elif found := _SLIDING_1626.fullmatch(name):
            positions = coverage.sliding(kept, length, int(found["stride"]))
            charged = _lut_bytes(table, tokens, positions)
        else:
            raise Unsupported(f"no rule for the result {name}")
        compare.exact(f"{name}: tokens", len(positions), int(result["token_count"]))
        compare.exact(f"{name}: bytes", charged, int(result["byte_count"]))
        compare.exact(f"{name}: kept tokens", kept, result.get("n_val_tokens", kept))
    compare.remarks.append("data half: tokens and bytes of every result, tables of the tokenizer; no model was run")
    return compare.outcome()


def baseline_evaluation(case: Case) -> Outcome:
    """eval_val of the baseline and eval_val_sliding of 2026-03-19: tokens per byte, which loss and bpb imply."""
    compare, meta = Comparison(), case.meta
    table, tokens = _table(case), case.arrays["val_tokens"]
    length = meta["train_seq_len"]
    for name, (loss, bpb) in meta["results"].items():
        if found := _BASELINE.fullmatch(name):
            positions = coverage.rows(len(tokens), length, int(found["ws"]), int(found["rank"]))
        elif found := _SLIDING.fullmatch(name):
            positions = coverage.sliding_with_tail(
                len(tokens), length, int(found["stride"]), int(found["ws"]), int(found["rank"])
            )
        else:
            raise Unsupported(f"no rule for the result {name}")
        ratio = len(positions) / _lut_bytes(table, tokens, positions)
        compare.close(f"{name}: tokens per byte", ratio, bpb / loss * math.log(2), RATIO_TOLERANCE)
    compare.remarks.append("data half: tokens per byte of every result; no model was run")
    return compare.outcome()


def _table(case: Case) -> ByteTable:
    """The published table rule: a space after a boundary is not counted, although these models keep it."""
    table = ByteTable.of(Tokenizer.load(case.tokenizer_file()))
    return dataclasses.replace(table, space_after_boundary=False)


def _lut_bytes(table: ByteTable, tokens: Array, positions: Positions) -> int:
    counted: Any = table.token_bytes(tokens[positions - 1], tokens[positions])
    return int(counted.sum())


def _ranks_times_steps(world_size: int) -> int:
    return world_size * (GRAD_ACCUM_TIMES_RANKS // world_size)
