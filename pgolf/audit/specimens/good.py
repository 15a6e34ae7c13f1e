"""Legal strategies: those of the configuration in many settings, and online adaptation of a user's own."""

import random
from collections.abc import Iterator

import torch
from torch import Tensor

from pgolf.audit.specimens.steps import chunks
from pgolf.model.context import SITES
from pgolf.model.gpt import GPT
from pgolf.score.scorer import Scorer
from pgolf.ttt.fixed import Chunked, Sliding
from pgolf.ttt.global_sgd import GlobalSGD
from pgolf.ttt.lora import LoraSettings
from pgolf.ttt.phased import Phased
from pgolf.ttt.score_first_sgd import ScoreFirstSGD
from pgolf.ttt.strategy import Bench, Strategy, window_log_probs


class OnlineBias:
    """Learns a bias of the logits on each chunk after it was scored, anew in every document."""

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """Score a chunk, then step on it."""
        bias = torch.zeros(1)
        for window in chunks(scorer):
            if window.score_start == scorer.span(window.document)[0] + 1:
                bias = torch.zeros(model.tok_emb.weight.shape[0], device=scorer.group.device, requires_grad=True)
                optimizer = torch.optim.Adam([bias], lr=0.05)
            with torch.no_grad():
                plain = window_log_probs(model, scorer, [window], bench.attention)
            nats = scorer.score([window], torch.log_softmax(plain + bias, dim=-1))
            optimizer.zero_grad()
            nats.sum().backward()
            optimizer.step()


class BigramCache:
    """Counts pairs of tokens of the document that were scored, and mixes them in as a full distribution."""

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """Score a chunk with the counts so far, then count it."""
        vocabulary = model.tok_emb.weight.shape[0]
        counts = torch.zeros(0, 0)
        with torch.no_grad():
            for window in chunks(scorer):
                start = scorer.span(window.document)[0]
                if window.score_start == start + 1:
                    counts = torch.zeros(vocabulary, vocabulary, dtype=torch.float64)
                probs = window_log_probs(model, scorer, [window], bench.attention).double().exp()[0].cpu()
                before = scorer.inputs([window])[0, window.first_column :].cpu()
                scorer.score([window], _mixed(probs, counts[before]).log().float()[None].to(scorer.group.device))
                known = scorer.revealed(window.document, window.score_start - 1, window.score_end)
                for first, second in zip(known[:-1].tolist(), known[1:].tolist(), strict=True):
                    counts[first, second] += 1


def _mixed(probs: Tensor, counts: Tensor) -> Tensor:
    """A fifth of the counted distribution where there is one; [C, V] both."""
    total = counts.sum(-1, keepdim=True)
    return torch.where(total > 0, 0.8 * probs + 0.2 * counts / total.clamp_min(1), probs)


def configurations(count: int, seed: int = 2026) -> Iterator[tuple[str, Strategy]]:
    """`count` random settings of the configuration's strategies, the same for the same seed; and a name for each."""
    chance = random.Random(seed)
    kinds = (_chunked, _sliding, _score_first, _phased)
    for number in range(count):
        strategy, what = kinds[number % len(kinds)](chance)
        yield f"{number:02d} {what}", strategy


def _chunked(chance: random.Random) -> tuple[Strategy, str]:
    length, documents = chance.choice([4, 8, 16]), chance.choice(["isolated", "joined", "packed"])
    batch = length * chance.choice([1, 2]) if documents == "packed" else None
    made = Chunked(sequence_tokens=length, rows=chance.choice([1, 3]), documents=documents, batch_tokens=batch)  # type: ignore[arg-type]
    return made, f"chunked {length} {documents}"


def _sliding(chance: random.Random) -> tuple[Strategy, str]:
    length, documents = chance.choice([8, 16]), chance.choice(["isolated", "joined"])
    windows = chance.choice(["per_document", "over_text"])
    stride, rows = chance.choice([2, length // 2]), chance.choice([1, 4])
    made = Sliding(sequence_tokens=length, stride=stride, rows=rows, windows=windows, documents=documents)  # type: ignore[arg-type]
    return made, f"sliding {length}/{stride} {windows} {documents}"


def _sgd(chance: random.Random, boundaries: str) -> GlobalSGD:
    return GlobalSGD(
        lr=chance.choice([0.01, 0.1, 1.0]),
        momentum=chance.choice([0.0, 0.9]),
        chunk_tokens=16,
        sequence_tokens=chance.choice([8, 16]),
        epochs=chance.choice([1, 2]),
        clip_norm=chance.choice([None, 1.0]),
        boundaries=boundaries,  # type: ignore[arg-type]
    )


def _score_first(chance: random.Random) -> tuple[Strategy, str]:
    documents, stride = chance.choice(["isolated", "joined"]), chance.choice([4, 8])
    made = ScoreFirstSGD(
        sequence_tokens=8,
        stride=stride,
        rows=2,
        sgd=_sgd(chance, "rows"),
        documents=documents,  # type: ignore[arg-type]
    )
    return made, f"score-first SGD stride {stride} {documents}"


def _phased(chance: random.Random) -> tuple[Strategy, str]:
    targets = sorted(chance.sample(SITES, k=chance.randrange(1, len(SITES) + 1)))
    phases, order = chance.choice([0, 1, 2, 3]), chance.choice(["longest_first", "fewest_chunks_first", "file"])
    lora = LoraSettings(
        rank=chance.choice([1, 4]),
        alpha=4.0,
        targets=targets,
        lr=chance.choice([0.01, 0.3]),
        beta1=0.0,
        beta2=0.99,
        epsilon=1e-10,
        weight_decay=chance.choice([0.0, 0.5]),
        warm_start=chance.random() < 0.5,
    )
    made = Phased(
        phases=phases,
        prefix_docs=max(1, phases, 4),
        chunk=chance.choice([4, 8]),
        context_tokens=chance.choice([8, 16]),
        rows=chance.choice([1, 2]),
        lora=lora,
        sgd=_sgd(chance, "both"),
        order=order,  # type: ignore[arg-type]
        short_chunks=chance.choice([[], [[30, 2]]]),
    )
    return made, f"phased {phases} {order} {'+'.join(targets)}"
