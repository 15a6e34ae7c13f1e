"""Runners of test-time training: the published loops through `Phased` and the scorer here."""

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgolf.data.validation import BOS_ID, ValidationSet
from pgolf.interop.parity.adapters import adapter_place
from pgolf.interop.parity.build import Settings, build_model
from pgolf.interop.parity.case import Array, Case, Comparison, Outcome, Unsupported
from pgolf.interop.parity.text import BENCH, scored, text_of
from pgolf.interop.published import to_published
from pgolf.model.gpt import GPT
from pgolf.model.rope import Rotary
from pgolf.score.scorer import Scorer, Window
from pgolf.ttt.batches import DocumentBatch, document_batches, learnable, phase_boundaries
from pgolf.ttt.global_sgd import GlobalSGD
from pgolf.ttt.lora import LoraSettings
from pgolf.ttt.phased import Phased
from pgolf.ttt.strategy import Bench

LOSS, RUNNING, WEIGHTS = 1e-4, 1e-5, 1e-4
"""Of final losses and bits per byte; of running sums, relative; of weights after the global phases, relative norm."""
EPSILON = 1e-10
INERT = {"ttt_enabled", "phased_ttt_enabled"}
OPTIONAL_TARGETS = {"q": "ttt_q_lora", "k": "ttt_k_lora", "v": "ttt_v_lora", "o": "ttt_o_lora", "mlp": "ttt_mlp_lora"}
MASKS: dict[str, set[str]] = {"": set(), "all": set(), "no_q": {"q"}, "no_v": {"v"}, "no_qv": {"q", "v"}}
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


class _Recorded(GlobalSGD):
    """Keeps the token stream of every pass."""

    streams: list[Array]

    def run(self, model: GPT, scorer: Scorer, documents: list[int], bench: Bench) -> int:
        """As GlobalSGD does, with the stream kept."""
        stream = [scorer.revealed(document, *scorer.span(document)).numpy() for document in documents]
        self.streams.append(np.concatenate(stream) if stream else np.zeros(0, np.int64))
        return super().run(model, scorer, documents, bench)


def window_sums(scorer: Scorer, window: Window) -> tuple[float, float, float]:
    """Nats, bytes and tokens of one scored window."""
    cut, ledger = slice(window.score_start, window.score_end), scorer.ledger
    return float(ledger.nats[cut].sum()), float(ledger.token_bytes[cut].sum()), float(window.length)


def phased(case: Case) -> Outcome:
    """eval_val_ttt_phased: loss, bits per byte, sums after every call, what the global phases read and leave behind."""
    meta, compare = case.meta, Comparison()
    model = build_model(str(meta["script"]), meta["config"], case.below("p/"))
    model.set_plan("looped")
    if (rope := model.blocks[0].attn.rope).train_tokens is not None:
        longest = meta["ttt"]["ttt_eval_seq_len"]
        compare.remarks.append(f"rotary tables made for {longest} tokens and kept, as before the published loop")
        for block in model.blocks:
            block.attn.rope = Rotary(dims=rope.dims, base=rope.base_for(longest))
    before = {to_published(name): value.detach().clone() for name, value in model.named_parameters()}
    text = _text(case)
    strategy, sgd = _strategy(case, model)
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
    given = _adapters(case.below("loraA/"))
    starts = np.flatnonzero(case.arrays["val_tokens"] == BOS_ID)
    rank, rows = settings.get("rank"), settings.get("bs")
    chunk, context = settings.get("chunk"), settings.get("seq")
    settings.get("lr", 0.0)  # each result names its own
    _refuse(settings)
    for name, (loss, bpb) in meta["results_loss_bpb"].items():
        if not (found := _RESULT.fullmatch(name)):
            raise Unsupported(f"no rule for the result {name}")
        world, which = int(found["ws"]), int(found["rank"])
        share = range(len(starts) * which // world, len(starts) * (which + 1) // world)
        model = build_model(str(meta["script"]), meta["config"], case.below("p/"))
        lora = LoraSettings(
            rank=rank,
            alpha=rank,
            targets=_sites(given),
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
        strategy.initial_a = lambda batch, phase: _rows(given, len(batch.documents))
        scorer = scored(model, strategy, _documents(_text(case), list(share)), calls := _Calls())
        compare.close(f"{name}: loss", scorer.total().val_loss, loss, LOSS)
        compare.close(f"{name}: bits per byte", scorer.total().val_bpb, bpb, LOSS)
        each = [window_sums(scorer, window) for call in calls.windows for window in reversed(call)]
        _compare_sums(compare, name, np.array(each), case.arrays[f"cum_{name}"])
    return compare.outcome()


def _strategy(case: Case, model: GPT) -> tuple[Phased, _Recorded]:
    """The strategy that the case's settings describe, with its first A as in the case. Unsupported by name for what
    it does not know."""
    meta = case.meta
    settings = Settings(meta["ttt"])
    get, arrays = settings.get, case.below("loraA/")
    for key, plain in (("ttt_grad_steps", 1), ("ttt_optimizer", "adam"), ("ttt_eval_batches", "")):
        if (value := get(key, plain)) != plain:
            raise Unsupported(f"{key}={value} is not here")
    _environment(meta)
    masked = MASKS.get(mask := str(get("ttt_mask", "")).lower())
    if masked is None:
        raise Unsupported(f"ttt_mask={mask} is not known")
    targets = [site for site, key in OPTIONAL_TARGETS.items() if get(key, site not in masked)] + ["head"]
    given = _adapters(arrays)
    if given and set(targets) != set(_sites(given)):
        raise Unsupported(f"adapters are given at {_sites(given)}, but the settings ask for {targets}")
    rank = get("ttt_lora_rank")
    alpha = meta.get("alpha")
    lora = LoraSettings(
        rank=rank,
        alpha=float(rank if alpha is None else alpha),
        targets=targets,
        lr=get("ttt_lora_lr"),
        lr_multiplier=get("ttt_local_lr_mult", 1.0),
        beta1=get("ttt_beta1"),
        beta2=get("ttt_beta2"),
        epsilon=meta.get("eps", EPSILON),
        weight_decay=get("ttt_weight_decay"),
        warm_start=bool(meta.get("warm_start_A", False)),
    )
    sgd = _Recorded(
        lr=get("global_ttt_lr"),
        momentum=get("global_ttt_momentum"),
        epochs=get("global_ttt_epochs"),
        chunk_tokens=get("global_ttt_chunk_tokens"),
        sequence_tokens=meta["config"]["eval_seq_len"],
        rows_per_step=get("global_ttt_batch_seqs"),
        clip_norm=get("global_ttt_grad_clip") or None,
        warmup_chunks=get("global_ttt_warmup_chunks", 0),
        warmup_start_lr=get("global_ttt_warmup_start_lr", 0.0),
        boundaries="documents" if get("global_ttt_respect_doc_boundaries") else "rows",
    )
    sgd.streams = []
    strategy = Phased(
        phases=get("phased_ttt_num_phases"),
        prefix_docs=get("phased_ttt_prefix_docs"),
        chunk=get("ttt_chunk_size"),
        context_tokens=get("ttt_eval_seq_len"),
        rows=get("ttt_batch_size"),
        lora=lora,
        sgd=sgd,
        chains=1,
    )
    _refuse(settings)
    drawn = _Drawn(model, strategy, int(meta.get("torch_seed", 0)))
    strategy.initial_a = drawn if not given else lambda batch, phase: _rows(given, len(batch.documents))
    return strategy, sgd


class _Drawn:
    """A as the scripts draw it from torch's global generator: for a set of adapters of full size at the beginning and
    after every global phase, and again for every batch."""

    def __init__(self, model: GPT, strategy: Phased, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._strategy, self._phase = strategy, -1
        order = {site: index for index, site in enumerate(("head", "q", "v", "k", "mlp", "o"))}
        sites = [site for site in model.adapter_sites() if site[1] in strategy.lora.targets]
        self._sites = sorted(sites, key=lambda site: (order[site[1]], site[0]))

    def __call__(self, batch: DocumentBatch, phase: int) -> dict[str, Tensor]:
        """A for the documents of `batch`."""
        if phase != self._phase:
            self._draw(self._strategy.rows)
            self._phase = phase
        return self._draw(len(batch.documents))

    def _draw(self, rows: int) -> dict[str, Tensor]:
        found = {}
        for slot, site, in_features, _ in self._sites:
            values = torch.empty(rows, self._strategy.lora.rank, in_features)
            bound = in_features**-0.5
            found[f"{slot}:{site}"] = values.uniform_(-bound, bound, generator=self._generator).flip(0)
        return found


def _last_phase(strategy: Phased, sgd: _Recorded, model: GPT, scorer: Scorer) -> None:
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


def _text(case: Case) -> ValidationSet:
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
    return _documents(text, sorted(chosen))


def _documents(text: ValidationSet, chosen: list[int]) -> ValidationSet:
    """Some documents of a text; the last is still charged for the start of the document behind it."""
    ends = np.append(text.document_starts[1:], len(text.tokens))
    parts = [np.arange(text.document_starts[document], ends[document]) for document in chosen]
    starts = np.cumsum([0, *(len(part) for part in parts)])[:-1]
    index = np.concatenate([*parts, np.arange(ends[chosen[-1]], len(text.tokens))[:1]])
    return text_of(text.tokens[index], text.token_bytes[index], starts)


def _adapters(arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    """The A of a case by the places here, rows as the scripts have them: shortest document first."""
    return {adapter_place(name)[0]: torch.from_numpy(value) for name, value in arrays.items()}


def _rows(given: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """The first `count` rows, for documents that are sorted the other way round here."""
    return {key: value[:count].flip(0) for key, value in given.items()}


def _sites(given: Mapping[str, Tensor]) -> list[str]:
    return sorted({key.partition(":")[2] for key in given})


def _environment(meta: Mapping[str, Any]) -> None:
    known = {"ttt_lora_alpha", "ttt_warm_start_a", *meta["ttt"], *meta["config"]}
    if unknown := sorted(key for key in meta.get("env") or {} if key.lower() not in known):
        raise Unsupported(f"environment setting(s) not known: {', '.join(unknown)}")


def _refuse(settings: Settings) -> None:
    if unknown := [name for name in settings.rest() if name not in INERT]:
        raise Unsupported(f"setting(s) not known: {', '.join(unknown)}")
