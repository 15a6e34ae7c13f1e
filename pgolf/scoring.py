"""Scoring the validation text with one model, and what is written down of it."""

import math
import time
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pgolf.console import Silent
from pgolf.data.validation import ValidationSet
from pgolf.model.gpt import GPT
from pgolf.model.mode import evaluating
from pgolf.score.ledger import Ledger, Total
from pgolf.score.scorer import Scorer
from pgolf.train import interrupts
from pgolf.train.recompiles import graphs
from pgolf.ttt.budget import INTERRUPTED
from pgolf.ttt.fixed import Chunked
from pgolf.ttt.strategy import Strategy
from pgolf.workshop import Workshop

SHORTEST = 16  # tokens: the first bucket of lengths and of positions ends here, each further one is twice as long


def score(shop: Workshop, stage: str, model: GPT, strategy: Strategy | None = None) -> dict[str, Any]:
    """Walk the validation text through the scorer; the result is the ledger's sum, and scores.npz has a row for every
    document.

    SIGINT and SIGTERM wait for the batch that is under way: what is scored by then is said and logged as a part, and
    Interrupted is raised; the stage is not done.
    """
    chosen = strategy or plain(shop)
    scorer = Scorer(shop.validation, shop.group)
    begun, before = time.monotonic(), graphs()
    with interrupts.deferred() as asked:
        chosen.run(model, scorer, replace(shop.bench(stage), asked=asked))
        interrupted = bool(shop.group.largest([float(asked())])[0])
    seconds = time.monotonic() - begun
    if interrupted:
        _note_part(shop, stage, scorer)
        raise interrupts.Interrupted
    total, covered = scorer.total(), scorer.coverage
    shop.record.add_scores(_columns(shop, stage, scorer.ledger))
    shop.console.say(
        f"{stage}: {total.val_bpb:.4f} bits per byte over {covered.documents} documents in {seconds:.1f} s"
        + (f" ({covered.policy}: {covered.left_out} positions of the text are not scored)" if covered.left_out else "")
    )
    made = {"graphs": graphs() - before} if shop.recipe.compile_scoring else {}
    if made:
        shop.console.say(f"{stage}: {made['graphs']} graph(s) were compiled within these seconds")
    return {
        "val_bpb": total.val_bpb,
        "val_loss": total.val_loss,
        "tokens": total.tokens,
        "bytes": total.bytes,
        "seconds": seconds,
        "coverage": {**asdict(covered), "contexts": scorer.documents},
        "positions": by_position(scorer.ledger, shop.validation),
        **made,
        **_experts(shop, stage, scorer, total),
    }


def validate(shop: Workshop, model: GPT) -> dict[str, float]:
    """Score the validation text with the weights as they are in the middle of training; nothing is learned from it."""
    scorer = Scorer(shop.validation, shop.group)
    with evaluating(model):
        plain(shop).run(model, scorer, replace(shop.bench("validation"), console=Silent(), log=lambda event: None))
    total = scorer.total()
    shop.console.say(f"validation: {total.val_bpb:.4f} bits per byte")
    return {"val_bpb": total.val_bpb, "val_loss": total.val_loss}


def plain(shop: Workshop) -> Chunked:
    """Scoring in rows as training has them."""
    train = shop.recipe.train
    rows = max(1, train.micro_batch_tokens // train.sequence_tokens)
    return Chunked(sequence_tokens=train.sequence_tokens, rows=rows)


def bucket(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The bucket of each length in tokens, by its longest: SHORTEST, and so on by doubling."""
    doublings = np.ceil(np.log2(np.maximum(lengths, 1) / SHORTEST)).clip(min=0)
    return (SHORTEST * 2**doublings).astype(np.int64)


def by_position(ledger: Ledger, validation: ValidationSet) -> list[dict[str, float]]:
    """Tokens, bytes and nats of what was scored, by how far into its document it is: positions up to `to`, after the
    `to` of the entry before."""
    scored = np.flatnonzero(np.isfinite(ledger.nats))
    starts = validation.document_starts
    document = np.searchsorted(starts, scored - 1, side="right") - 1  # the next one's first token is charged to it
    buckets = bucket(scored - starts[document])
    found = []
    for to in np.unique(buckets):
        entries = scored[buckets == to]
        num_bytes, nats = int(ledger.token_bytes[entries].sum()), math.fsum(ledger.nats[entries])
        found.append({"to": int(to), "tokens": len(entries), "bytes": num_bytes, "nats": nats})
    return found


def _columns(shop: Workshop, stage: str, ledger: Ledger) -> dict[str, npt.NDArray[Any]]:
    """What scores.npz holds of this stage; `order` and `phase` are those of the final one."""
    documents = ledger.per_document()
    columns: dict[str, npt.NDArray[Any]] = {f"nats_{stage}": documents["nats"]}
    if stage == "final" or not (shop.directory / "scores.npz").exists():
        columns |= {key: documents[key] for key in ("tokens", "bytes", "order", "phase")}
        columns |= {"document": np.arange(len(documents["nats"])), "length_bucket": bucket(documents["tokens"])}
    return columns


def _note_part(shop: Workshop, stage: str, scorer: Scorer) -> None:
    """Say and log how far scoring came before it was asked to end."""
    found, sofar = scorer.coverage, scorer.ledger.running()
    figure = sofar.val_bpb if sofar.bytes else None
    shown = f"{figure:.4f} bits per byte over this part; " if figure is not None and found.policy == INTERRUPTED else ""
    shop.console.say(f"{stage}: {shown}the stage is not done, and begins anew when the same command continues the run")
    shop.record.log({"event": "partial", "stage": stage, "bpb_of_part": figure, **asdict(found)})


def _experts(shop: Workshop, stage: str, scorer: Scorer, total: Total) -> dict[str, Any]:
    """What each expert did: the share of positions where it proposed something, and the bits per byte it saved."""
    found = {
        name: {"positions": gain.positions, "saved_bpb": gain.nats / math.log(2) / total.bytes}
        for name, gain in scorer.gains().items()
    }
    for name, gain in found.items():
        share = gain["positions"] / total.tokens
        shop.console.say(f"{stage}: {name} acted on {share:.1%} of positions, {-gain['saved_bpb']:+.5f} bits per byte")
    return {"experts": found} if found else {}
