"""From the settings of a case of test-time training to the strategy that they describe."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgolf.interop.parity.adapters import adapter_place
from pgolf.interop.parity.build import Settings
from pgolf.interop.parity.case import Array, Case, Unsupported
from pgolf.model.gpt import GPT
from pgolf.score.scorer import Scorer
from pgolf.ttt.batches import DocumentBatch
from pgolf.ttt.global_sgd import GlobalSGD
from pgolf.ttt.lora import LoraSettings
from pgolf.ttt.phased import Phased
from pgolf.ttt.strategy import Bench

EPSILON = 1e-10
INERT = {"ttt_enabled", "phased_ttt_enabled"}
OPTIONAL_TARGETS = {"q": "ttt_q_lora", "k": "ttt_k_lora", "v": "ttt_v_lora", "o": "ttt_o_lora", "mlp": "ttt_mlp_lora"}
MASKS: dict[str, set[str]] = {"": set(), "all": set(), "no_q": {"q"}, "no_v": {"v"}, "no_qv": {"q", "v"}}


class RecordedSGD(GlobalSGD):
    """Keeps the token stream of every pass."""

    streams: list[Array]

    def run(self, model: GPT, scorer: Scorer, documents: list[int], bench: Bench) -> int:
        """As GlobalSGD does, with the stream kept."""
        stream = [scorer.revealed(document, *scorer.span(document)).numpy() for document in documents]
        self.streams.append(np.concatenate(stream) if stream else np.zeros(0, np.int64))
        return super().run(model, scorer, documents, bench)


def strategy_of(case: Case, model: GPT) -> tuple[Phased, RecordedSGD]:
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
    given = given_adapters(arrays)
    if given and set(targets) != set(adapted_sites(given)):
        raise Unsupported(f"adapters are given at {adapted_sites(given)}, but the settings ask for {targets}")
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
    sgd = RecordedSGD(
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
    refuse_unread(settings)
    drawn = _Drawn(model, strategy, int(meta.get("torch_seed", 0)))
    strategy.initial_a = drawn if not given else lambda batch, phase: first_rows(given, len(batch.documents))
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


def given_adapters(arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    """The A of a case by the places here, rows as the scripts have them: shortest document first."""
    return {adapter_place(name)[0]: torch.from_numpy(value) for name, value in arrays.items()}


def first_rows(given: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """The first `count` rows, for documents that are sorted the other way round here."""
    return {key: value[:count].flip(0) for key, value in given.items()}


def adapted_sites(given: Mapping[str, Tensor]) -> list[str]:
    """The sites of adapters, by name."""
    return sorted({key.partition(":")[2] for key in given})


def _environment(meta: Mapping[str, Any]) -> None:
    known = {"ttt_lora_alpha", "ttt_warm_start_a", *meta["ttt"], *meta["config"]}
    if unknown := sorted(key for key in meta.get("env") or {} if key.lower() not in known):
        raise Unsupported(f"environment setting(s) not known: {', '.join(unknown)}")


def refuse_unread(settings: Settings) -> None:
    """Unsupported for the settings that nothing read."""
    if unknown := [name for name in settings.rest() if name not in INERT]:
        raise Unsupported(f"setting(s) not known: {', '.join(unknown)}")
