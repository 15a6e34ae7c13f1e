"""Documents per second of `ttt=phased` against the published loop, on the same weights and documents.

    python benchmarks/bench_ttt.py [--run DIR] [--pairs N] [--documents N] [--random] [--operations] [key=value ...]

The words are overrides as for `pgolf`; without any, the default model at mini scale on the embedded corpus. --run takes
the weights of a finished run of the same configuration; without it they are random. --documents scores the first so
many documents alone, --random takes random documents of about the published lengths (log-normal, mean 810 tokens).

The published loop (PR 1530 and after, on one process) makes one forward over the whole growing window for every chunk,
with a row for every document of the batch, finished or not, and the logits and the loss of every position. It shares
the model, the adapters, AdamW and the global phases with pgolf. Both must give the same bits per byte before a ratio is
printed: published seconds / ours, the median over pairs in one process whose order alternates. --operations counts the
floating-point operations of products and attention as well, which no other load on the machine can change.
"""

import argparse
import copy
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from pgolf.app.machine import prepare_process

prepare_process()

import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from pgolf.app import build  # noqa: E402
from pgolf.app.verbs.composing import compose  # noqa: E402
from pgolf.console import Silent  # noqa: E402
from pgolf.data.dataset import Dataset  # noqa: E402
from pgolf.data.validation import BOS_ID, ValidationSet  # noqa: E402
from pgolf.distributed import Group, alone  # noqa: E402
from pgolf.model.context import Context  # noqa: E402
from pgolf.model.gpt import GPT  # noqa: E402
from pgolf.model.roles import stream  # noqa: E402
from pgolf.quant import container  # noqa: E402
from pgolf.score.scorer import Scorer  # noqa: E402
from pgolf.ttt.batches import DocumentBatch, document_batches, learnable, phase_boundaries  # noqa: E402
from pgolf.ttt.lora import BatchedLora  # noqa: E402
from pgolf.ttt.phased import Phased  # noqa: E402
from pgolf.ttt.strategy import Bench  # noqa: E402
from pgolf.workshop import chosen_attention  # noqa: E402

EQUAL = 1e-6  # of the bits per byte, in fp32; bf16 autocast rounds otherwise for other shapes
EQUAL_BF16 = 1e-3
MEAN_TOKENS, SIGMA = 810, 1.0  # FineWeb's validation documents in a vocabulary of 8,192: 40.5 million tokens of 50,000


class Text:
    """The tokens of a validation text for the published loop, which has no scorer: what it may see is up to it."""

    def __init__(self, validation: ValidationSet, group: Group) -> None:
        self.tokens = torch.from_numpy(validation.tokens.astype(np.int64))
        self.token_bytes = torch.from_numpy(validation.token_bytes.astype(np.int64))
        starts = validation.document_starts.tolist()
        self.spans = list(zip(starts, [start + 1 for start in starts[1:]] + [len(self.tokens)], strict=True))
        self.group = group

    def span(self, document: int) -> tuple[int, int]:
        """First token of a document and the end of its slice, which holds the first token of the next."""
        return self.spans[document]

    def revealed(self, document: int, start: int, end: int) -> Tensor:
        """Tokens [start, end)."""
        return self.tokens[start:end].clone()


def published(strategy: Phased, model: GPT, validation: ValidationSet, bench: Bench, group: Group) -> float:
    """Bits per byte of the published loop along the queue of `strategy`; the model is left as the phases made it."""
    text = Text(validation, group)
    lengths = [end - start for start, end in text.spans]
    queue = document_batches(lengths, strategy.rows, strategy.order, strategy.chunks)
    boundaries = phase_boundaries(len(lengths), strategy.prefix_docs, strategy.phases)
    finished: list[DocumentBatch] = []
    nats = torch.zeros((), dtype=torch.float64, device=group.device)
    model.requires_grad_(False)
    done = 0
    for position, batch in enumerate(queue):
        nats += published_batch(strategy, model, text, batch, bench)
        finished.append(batch)
        count = sum(len(one.documents) for one in finished)
        if position + 1 < len(queue) and done < len(boundaries) and count >= boundaries[done]:
            strategy.sgd.run(model, text, learnable(finished, boundaries[done]), bench)  # type: ignore[arg-type]
            done += 1
    return float(nats) / math.log(2) / int(text.token_bytes.sum())


def published_batch(strategy: Phased, model: GPT, text: Text, batch: DocumentBatch, bench: Bench) -> Tensor:
    """Summed nats, float64, of one batch of documents under adapters of their own."""
    device, chunk = text.group.device, batch.chunk
    slices = [text.tokens[slice(*text.span(document))] for document in batch.documents]
    predicted = [len(one) - 1 for one in slices]
    chunks = [math.ceil(length / chunk) for length in predicted]
    lora = BatchedLora(model, len(slices), strategy.lora, bench.seed, f"ttt/lora/{batch.index}")
    optimizer = strategy.lora.optimizer(list(lora.parameters()))
    nats = torch.zeros((), dtype=torch.float64, device=device)
    for index in range(max(chunks)):
        width = min((index + 1) * chunk, strategy.context_tokens)
        inputs = torch.zeros(len(slices), width, dtype=torch.int64)
        targets = torch.zeros_like(inputs)
        places = []
        for row, (tokens, length) in enumerate(zip(slices, predicted, strict=True)):
            end = min((index + 1) * chunk, length)
            first = max(0, end - strategy.context_tokens)
            if index >= chunks[row]:  # finished: a row of padding
                places.append((0, 0))
                continue
            inputs[row, : end - first] = tokens[first:end]
            targets[row, : end - first] = tokens[first + 1 : end + 1]
            places.append((index * chunk - first, end - first))
        inputs, targets = inputs.to(device), targets.to(device)
        context = Context(bench.attention, adapters=lora)
        with model.precision.autocast(device):
            logits = model.logits(model(inputs, context), context)
            losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
        losses = losses.view_as(targets)
        for row, (start, end) in enumerate(places):
            nats += losses[row, start:end].detach().double().sum()
        goes_on = [index + 1 < count for count in chunks]
        if any(goes_on):
            wanted = [row for row, more in enumerate(goes_on) if more]
            loss = sum(losses[row, slice(*places[row])].mean() for row in wanted)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[union-attr]
            optimizer.step()
    return nats


def ours(strategy: Phased, model: GPT, validation: ValidationSet, bench: Bench, group: Group) -> float:
    """Bits per byte as `pgolf` scores it."""
    scorer = Scorer(validation, group)
    strategy.run(model, scorer, bench)
    return scorer.total().val_bpb


def random_text(vocabulary: int, documents: int) -> ValidationSet:
    """Random tokens in documents of the published lengths, three bytes each."""
    generator = np.random.default_rng(0)
    sizes = np.exp(generator.normal(math.log(MEAN_TOKENS) - SIGMA**2 / 2, SIGMA, documents)).astype(int) + 2
    starts = np.append(0, sizes.cumsum())
    tokens = generator.integers(4, vocabulary, starts[-1]).astype(np.uint16)
    tokens[starts[:-1]] = BOS_ID
    token_bytes = np.where(tokens == BOS_ID, 0, 3).astype(np.int32)
    names = [str(number) for number in range(documents)]
    return ValidationSet(tokens, token_bytes, starts[:-1].astype(np.int64), 3 * (sizes - 1), names)


def measure(
    strategy: Phased, model: GPT, validation: ValidationSet, bench: Bench, group: Group, pairs: int
) -> dict[str, object]:
    """Both in turn, `pairs` times, each on a copy of `model`. SystemExit when they score differently."""

    def timed(work: Callable[..., float]) -> tuple[float, float]:
        fresh = copy.deepcopy(model)
        begun = clock()
        bpb = work(strategy, fresh, validation, bench, group)
        return bpb, clock() - begun

    # on a CPU the seconds that this process computed, so that what else the machine does hardly counts
    clock = time.process_time if group.device.type == "cpu" else time.perf_counter
    results = []
    for pair in range(pairs):
        order = (published, ours) if pair % 2 else (ours, published)
        found = {work: timed(work) for work in order}
        results.append((*found[published], *found[ours]))
    bpb = {"published": results[0][0], "ours": results[0][2]}
    apart = max(abs(a / b - 1) for a, _, b, _ in results)
    precise = not torch.is_autocast_enabled(group.device.type) and group.device.type == "cpu"
    if apart > (EQUAL if precise else EQUAL_BF16):
        raise SystemExit(f"the two loops score differently by a relative {apart:.1e}: {bpb}")
    seconds = statistics.median(one[1] for one in results), statistics.median(one[3] for one in results)
    documents = len(validation.document_starts)
    return {
        "published_over_ours": round(statistics.median(one[1] / one[3] for one in results), 3),
        "documents_per_second": {"published": documents / seconds[0], "ours": documents / seconds[1]},
        "bits_per_byte": bpb,
        "relative_difference": apart,
        "pairs": pairs,
    }


def operations(
    strategy: Phased, model: GPT, validation: ValidationSet, bench: Bench, group: Group
) -> dict[str, object]:
    """Operations of both, of forward and backward passes, and their ratio."""
    counted = []
    for work in (published, ours):
        with FlopCounterMode(display=False) as counter:
            work(strategy, copy.deepcopy(model), validation, bench, group)
        counted.append(counter.get_total_flops())
    both = {"published": counted[0], "ours": counted[1]}
    return {"operations": both, "operations_published_over_ours": round(counted[0] / counted[1], 3)}


def main() -> None:
    """Compose, compare, print one line of JSON."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("words", nargs="*", metavar="key=value", help="overrides, as for `pgolf`")
    made.add_argument("--run", type=Path, metavar="DIR", help="a finished run: its artifact gives the weights")
    made.add_argument("--documents", type=int, default=10**9, metavar="N", help="the first N documents alone")
    made.add_argument("--random", action="store_true", help="random documents of the published lengths")
    made.add_argument("--operations", action="store_true", help="count operations too (two more runs)")
    made.add_argument("--pairs", type=int, default=3, help="runs of each (default 3)")
    options = made.parse_args()
    options.config_dir, options.config_path, options.config_name = None, None, "config"
    recipe = build.recipe(compose(options.words, options).config)
    if not isinstance(recipe.ttt, Phased) or recipe.ttt.lora.warm_start:
        raise SystemExit("this compares ttt=phased and ttt=lora, with adapters that begin anew in every batch")
    group = alone()
    if options.random:
        validation = random_text(recipe.data.vocab_size, min(options.documents, 200))
    else:
        recipe.data.prepare(recipe.data_root, Silent())
        validation = Dataset(recipe.data.directory(recipe.data_root)).validation()
        validation = validation.head(min(options.documents, len(validation.names)), len(validation.tokens))
    model = recipe.model(recipe.data.vocab_size, recipe.seed)
    if options.run is not None:
        model.load_state_dict(container.load(options.run / "artifact.pgolf")[0])
    else:
        with torch.no_grad():  # output projections begin at zero: every prediction shall depend on its inputs
            for name, parameter in model.named_parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=stream(0, name)))
    model.set_plan("looped")
    name, attention = chosen_attention(recipe, group.device)
    bench = Bench(recipe.seed, attention, Silent())
    model = model.to(group.device).eval()
    found = measure(recipe.ttt, model, validation, bench, group, options.pairs)
    if options.operations:
        found |= operations(recipe.ttt, model, validation, bench, group)
    sizes = {"documents": len(validation.document_starts), "tokens": len(validation.tokens)}
    print(json.dumps({"device": str(group.device), "attention": name, **sizes, **found}))


if __name__ == "__main__":
    main()
