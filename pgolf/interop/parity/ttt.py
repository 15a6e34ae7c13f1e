"""Runners of test-time training: the published loops through `Phased` and the scorer here."""

import re
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from pgolf.data.validation import BOS_ID
from pgolf.interop.parity.build import Settings, build_model
from pgolf.interop.parity.case import Array, Case, Comparison, Outcome, Unsupported
from pgolf.interop.parity.text import BENCH, case_text, chosen_documents, scored
from pgolf.interop.parity.ttt_settings import (
    RecordedSGD,
    adapted_sites,
    first_rows,
    given_adapters,
    refuse_unread,
    strategy_of,
)
from pgolf.interop.published import to_published
from pgolf.model.gpt import GPT
from pgolf.model.rope import Rotary
from pgolf.score.scorer import Scorer, Window
from pgolf.ttt.batches import document_batches, learnable, phase_boundaries
from pgolf.ttt.global_sgd import GlobalSGD
from pgolf.ttt.lora import LoraSettings
from pgolf.ttt.phased import Phased

LOSS, RUNNING, WEIGHTS = 1e-4, 1e-5, 1e-4
"""Of final losses and bits per byte; of running sums, relative; of weights after the global phases, relative norm."""
_RESULT = re.compile(r"lr(?P<lr>[\d.e-]+)_ws(?P<ws>\d+)_rank(?P<rank>\d+)")


class _Calls:
    """An observer that keeps the windows of every call of the scorer, in order."""

    def __init__(self) -> None:
        self.windows: list[list[Window]] = []

    def handed_out(self, windows: Sequence[Window]) -> None:
        """Nothing to keep yet."""

    def scored(self, windows: Sequence[Window], log_probs: Tensor) -> None:
        """One call."""
        self.windows.append(list(windows))

    def sums(self, scorer: Scorer) -> Array:
        """(nats, bytes, tokens) of every call, float64 [calls, 3]."""
        return np.array([np.sum([window_sums(scorer, window) for window in call], axis=0) for call in self.windows])


def window_sums(scorer: Scorer, window: Window) -> tuple[float, float, float]:
    """Nats, bytes and tokens of one scored window."""
    cut, ledger = slice(window.score_start, window.score_end), scorer.ledger
    return float(ledger.nats[cut].sum()), float(ledger.token_bytes[cut].sum()), float(window.length)


def phased(case: Case) -> Outcome:
    """eval_val_ttt_phased: loss, bits per byte, sums after every call, what the global phases read and leave behind."""
    meta, compare = case.meta, Comparison()
    model = build_model(str(meta["script"]), meta["config"], case.below("p/"))
    model.set_plan("looped")
    if (rope := model.attention.rope).train_tokens is not None:
        longest = meta["ttt"]["ttt_eval_seq_len"]
        compare.remarks.append(f"rotary tables made for {longest} tokens and kept, as before the published loop")
        for attention in model.attentions:
            attention.rope = Rotary(dims=rope.dims, base=rope.base_for(longest))
    before = {to_published(name): value.detach().clone() for name, value in model.named_parameters()}
    text = case_text(case)
    strategy, sgd = strategy_of(case, model)
    scorer = scored(model, strategy, text, calls := _Calls())
    _last_phase(strategy, sgd, model, scorer)
    total = scorer.total()
    compare.close("loss", total.val_loss, meta["val_loss"], LOSS)
    compare.close("bits per byte", total.val_bpb, meta["val_bpb"], LOSS)
    _compare_calls(case, compare, scorer, calls, strategy.rows)
    expected = {key: value for key, value in case.arrays.items() if re.fullmatch(r"phase\d+_global_tokens", key)}
    compare.exact("number of global phases", len(sgd.streams), len(expected))
    for phase, stream in enumerate(sgd.streams):
        compare.exact(f"stream of phase {phase}", stream, expected[f"phase{phase}_global_tokens"])
    after = {to_published(name): value.detach() for name, value in model.named_parameters()}
    for name, value in case.below("final/").items():
        compare.near(f"final {name}", after[name].reshape(value.shape), value, WEIGHTS)
    for name, value in meta.get("delta_norm_after_global", {}).items():
        if name in after:
            compare.close(f"move of {name}", (after[name] - before[name]).norm(), value, WEIGHTS * max(1.0, value))
    return compare.outcome()


def per_document(case: Case) -> Outcome:
    """eval_val_ttt_lora of 2026-03-17: every rank's documents, loss, bits per byte and sums after every chunk."""
    meta, compare = case.meta, Comparison()
    settings = Settings(meta["ttt"])
    given = given_adapters(case.below("loraA/"))
    starts = np.flatnonzero(case.arrays["val_tokens"] == BOS_ID)
    rank, rows = settings.get("rank"), settings.get("bs")
    chunk, context = settings.get("chunk"), settings.get("seq")
    settings.get("lr", 0.0)  # each result names its own
    refuse_unread(settings)
    for name, (loss, bpb) in meta["results_loss_bpb"].items():
        if not (found := _RESULT.fullmatch(name)):
            raise Unsupported(f"no rule for the result {name}")
        world, which = int(found["ws"]), int(found["rank"])
        share = range(len(starts) * which // world, len(starts) * (which + 1) // world)
        model = build_model(str(meta["script"]), meta["config"], case.below("p/"))
        lora = LoraSettings(
            rank=rank,
            alpha=rank,
            targets=adapted_sites(given),
            lr=float(found["lr"]),
            beta1=meta["beta"][0],
            beta2=meta["beta"][1],
            epsilon=meta["eps"],
            weight_decay=0.0,
        )
        strategy = Phased(
            phases=0,
            prefix_docs=1,
            chunk=chunk,
            context_tokens=context,
            rows=rows,
            order="fewest_chunks_first",
            lora=lora,
            sgd=GlobalSGD(lr=0.0, momentum=0.0, chunk_tokens=1, sequence_tokens=1, epochs=1, clip_norm=1.0),
        )
        strategy.initial_a = lambda batch, phase: first_rows(given, len(batch.documents))
        scorer = scored(model, strategy, chosen_documents(case_text(case), list(share)), calls := _Calls())
        compare.close(f"{name}: loss", scorer.total().val_loss, loss, LOSS)
        compare.close(f"{name}: bits per byte", scorer.total().val_bpb, bpb, LOSS)
        each = [window_sums(scorer, window) for call in calls.windows for window in reversed(call)]
        _compare_sums(compare, name, np.array(each), case.arrays[f"cum_{name}"])
    return compare.outcome()


def _last_phase(strategy: Phased, sgd: RecordedSGD, model: GPT, scorer: Scorer) -> None:
    """The scripts also train after their last batch, when a phase is due by then: it changes no score."""
    lengths = [end - start for start, end in map(scorer.span, range(scorer.num_documents))]
    boundaries = phase_boundaries(len(lengths), strategy.prefix_docs, strategy.phases)
    if len(sgd.streams) < len(boundaries):
        queue = document_batches(lengths, strategy.rows)
        sgd.run(model, scorer, learnable(queue, boundaries[len(sgd.streams)]), BENCH)


def _compare_calls(case: Case, compare: Comparison, scorer: Scorer, calls: _Calls, rows: int) -> None:
    """Which rows score what in every call (the scripts keep finished documents as empty rows, shortest first), and
    the sums after it."""
    shapes = case.meta.get("calls_bsz_ctx_offsets_lens", [])
    compare.exact("number of calls", len(calls.windows), len(shapes))
    for index, (call, (size, _, offsets, lengths)) in enumerate(zip(calls.windows, shapes, strict=False)):
        finished = [0] * (size - len(call))
        compare.exact(f"lengths of call {index}", finished + [w.length for w in reversed(call)], lengths)
        compare.exact(f"offsets of call {index}", finished + [w.first_column for w in reversed(call)], offsets)
    _compare_sums(compare, "calls", calls.sums(scorer), case.arrays["cum_loss_bytes_tokens"])


def _compare_sums(compare: Comparison, name: str, each: Array, expected: Array) -> None:
    running = np.cumsum(each, axis=0)
    compare.exact(f"{name}: running bytes and tokens", running[:, 1:], expected[:, 1:])
    compare.close(f"{name}: running losses", running[:, 0] / expected[:, 0], np.ones(len(expected)), RUNNING)
