"""What the framework adds to a training step, twice: the model's forward and backward pass against the same operations
written out by hand on the same weights, and the Trainer against a bare loop around the same model.

    python benchmarks/bench_step.py [--pairs N] [--trainer-pairs N] [--device cuda] [--compile] [key=value ...]

The words are overrides as for `pgolf`; without any, the default model at mini scale. On a GPU: scale=full --compile.
Prints bare / framework of each (1.00: no overhead; 0.98 is the promise), the median over alternating pairs in one
process, with the quartiles. Both forward passes must give the same loss and gradients before anything is timed.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from pgolf.app.machine import prepare_process

prepare_process()

import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

from pgolf.app import build  # noqa: E402
from pgolf.app.verbs.composing import compose  # noqa: E402
from pgolf.console import Silent  # noqa: E402
from pgolf.data.shards import write_shard  # noqa: E402
from pgolf.distributed import alone  # noqa: E402
from pgolf.kernels.attend import Attention  # noqa: E402
from pgolf.kernels.packing import Packing  # noqa: E402
from pgolf.model.context import Context  # noqa: E402
from pgolf.model.exclude import OwnValue, exclude_value  # noqa: E402
from pgolf.model.gpt import GPT  # noqa: E402
from pgolf.model.head import SoftCap, TiedHead  # noqa: E402
from pgolf.model.mlp import LeakyReLUSquared  # noqa: E402
from pgolf.model.norm import rms_norm  # noqa: E402
from pgolf.record import RunRecord  # noqa: E402
from pgolf.train.clock import BudgetClock  # noqa: E402
from pgolf.workshop import chosen_attention  # noqa: E402

STEPS = 12  # of one block of the trainer comparison
Work = Callable[[], object]


def bare_forward(model: GPT, attention: Attention) -> Callable[[Tensor, Packing], Tensor]:
    """The forward pass of the default family along the model's plan, written out on the model's weights.

    Raises SystemExit for a model with other parts.
    """
    first = model.blocks[0]
    plain = (model.smear is None, model.lanes is None, isinstance(model.head, TiedHead))
    known = (isinstance(model.softcap, SoftCap), isinstance(first.mlp, LeakyReLUSquared), first.attn.gate is None)
    if not all((*plain, *known, isinstance(first.attn.exclude, OwnValue), model.gated_skips, first.layer_scale)):
        raise SystemExit("the written-out model has the parts of the default model alone: change sizes, not parts")
    visits = [(model.blocks[step.block], step.push, step.pop, (step.depth + 1) ** -0.5) for step in model.plan.passes]
    width, half, cap, slope = first.attn.head_dim, first.attn.rope.dims // 2, model.softcap.cap, first.mlp.slope
    tables: dict[int, tuple[Tensor, Tensor]] = {}

    def rotate(x: Tensor) -> Tensor:
        cos, sin = (table[:, None].to(x.dtype) for table in tables[x.shape[1]])
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat((a * cos + b * sin, b * cos - a * sin, rest), dim=-1)

    def forward(tokens: Tensor, packing: Packing) -> Tensor:
        if tokens.shape[1] not in tables:
            tables[tokens.shape[1]] = first.attn.rope.tables(tokens.shape[1], tokens.device)
        x = x0 = rms_norm(model.precision.stream(F.embedding(tokens, model.tok_emb.weight)))
        kept: list[Tensor] = []
        for block, push, pop, scale in visits:
            if pop is not None:
                skip = model.skip_weights[pop].to(x.dtype) * kept.pop()
                x = skip + torch.sigmoid(model.skip_gates[pop]).to(x.dtype) * (x - skip)
            attn, mlp, mix = block.attn, block.mlp, block.resid_mix.to(x.dtype)
            u = torch.addcmul(mix[0] * x, mix[1], x0)
            n = rms_norm(u, scale)
            weights = (attn.c_q.weight, attn.c_k.weight, attn.c_v.weight)
            q, k, v = (F.linear(n, weight.to(n.dtype)).unflatten(-1, (-1, width)) for weight in weights)
            q, k = rotate(rms_norm(q)), rotate(rms_norm(k))
            y = exclude_value(attention(q * attn.q_gain[:, None].to(q.dtype), k, v, packing), v).flatten(2)
            x = torch.addcmul(u, block.attn_scale.to(u.dtype), F.linear(y, attn.proj.weight.to(y.dtype)))
            n = rms_norm(x, scale)
            hidden = F.leaky_relu(F.linear(n, mlp.fc.weight.to(n.dtype)), slope).square()
            x = torch.addcmul(x, block.mlp_scale.to(x.dtype), F.linear(hidden, mlp.proj.weight.to(hidden.dtype)))
            if push:
                kept.append(x)
        x = rms_norm(x)
        return cap * torch.tanh(F.linear(x, model.tok_emb.weight.to(x.dtype)).float() / cap)

    return forward


def our_forward(model: GPT, attention: Attention) -> Callable[[Tensor, Packing], Tensor]:
    """The model as training calls it."""

    def forward(tokens: Tensor, packing: Packing) -> Tensor:
        context = Context(attention, packing)
        return model.logits(model(tokens, context), context)

    return forward


def step(model: GPT, forward: Callable[[Tensor, Packing], Tensor], tokens: Tensor, packing: Packing) -> Work:
    """One micro-step: forward, loss, backward, waiting for the device. Gives the loss; gradients stay in the model."""

    def work() -> Tensor:
        model.zero_grad(set_to_none=True)
        with model.precision.autocast(tokens.device):
            logits = forward(tokens[:, :-1], packing)
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        if tokens.is_cuda:
            torch.cuda.synchronize()
        return loss.detach()

    return work


def require_equal(model: GPT, bare: Work, ours: Work) -> None:
    """SystemExit unless both compute the same: otherwise the ratio would compare different work."""
    results = []
    for work in (bare, ours):
        loss = work()
        results.append([loss, *(x.grad.clone() for x in model.parameters() if x.grad is not None)])
    for a, b in zip(*results, strict=True):
        if (a - b).abs().max() > 1e-4 * b.abs().max():
            raise SystemExit("the written-out model computes something else: it no longer follows pgolf.model")


def ratio(bare: Work, framework: Work, pairs: int, device: torch.device) -> dict[str, object]:
    """Seconds of both, and bare / framework: median and quartiles over pairs whose order alternates.

    On a CPU the seconds are those that this process computed, so that what else the machine does hardly counts.
    """
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times: list[tuple[float, float]] = []
    for pair in range(pairs + 2):
        first, second = (bare, framework) if pair % 2 else (framework, bare)
        seconds = [_seconds(first, clock), _seconds(second, clock)]
        if pair >= 2:  # the first two warm up
            times.append((seconds[0], seconds[1]) if pair % 2 else (seconds[1], seconds[0]))
    ratios = [b / f for b, f in times]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {
        "bare_over_framework": round(middle, 4),
        "quartiles": [round(low, 4), round(high, 4)],
        "bare_seconds": statistics.median(b for b, _ in times),
        "framework_seconds": statistics.median(f for _, f in times),
        "pairs": len(times),
    }


def _seconds(work: Work, clock: Callable[[], float]) -> float:
    begun = clock()
    work()
    return clock() - begun


def compare_model(recipe, attention: Attention, device: torch.device, options: argparse.Namespace) -> dict[str, object]:
    """The model against the written-out forward pass, along the looped plan, on one packed micro-batch."""
    model = recipe.model(recipe.data.vocab_size, recipe.seed).to(device)
    model.set_plan("looped")
    with torch.no_grad():  # output projections begin at zero; so nothing is skipped as trivial
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    count, longest = recipe.train.micro_batch_tokens, recipe.train.sequence_tokens
    tokens = torch.randint(recipe.data.vocab_size, (1, count + 1)).to(device)
    bounds = torch.tensor([*range(0, count, max(1, 3 * longest // 4)), count], dtype=torch.int32)
    packing = Packing.from_cu_seqlens(bounds, longest).to(device)
    passes = [bare_forward(model, attention), our_forward(model, attention)]
    if options.compile:
        passes = [torch.compile(each, fullgraph=True) for each in passes]
    bare, ours = (step(model, each, tokens, packing) for each in passes)
    require_equal(model, bare, ours)
    found: dict[str, object] = {"compared": "model", "device": str(device), "compiled": options.compile}
    found.update(parameters=sum(x.numel() for x in model.parameters()), tokens=count)
    found.update(ratio(bare, ours, options.pairs, device))
    found["tokens_per_second"] = round(count / float(found["framework_seconds"]))
    return found


class Shards:
    """Random tokens in the shape the trainer reads."""

    def __init__(self, directory: Path, vocab_size: int, tokens: int) -> None:
        values = torch.randint(4, vocab_size, (tokens,), generator=torch.Generator().manual_seed(0)).numpy()
        values[::900] = 1
        self.train_files = [directory / "train_000000.bin"]
        write_shard(self.train_files[0], values.astype("uint16"))


class NoTracker:
    """Events go to metrics.jsonl only."""

    def log(self, event: dict[str, object]) -> None:
        """Drop the event."""


def compare_trainer(recipe, attention: Attention, pairs: int) -> dict[str, object]:
    """The Trainer, with its records, against a loop around the same model, optimiser, loader and averaging."""
    train, group = recipe.train, alone()

    def begin() -> tuple[GPT, object]:
        model = recipe.model(recipe.data.vocab_size, recipe.seed).to(group.device)
        return model, recipe.optim(model)

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        dataset = Shards(directory, recipe.data.vocab_size, 2 * STEPS * train.batch_tokens + 400_000)

        def framework() -> None:
            model, optimizers = begin()
            fresh = Path(tempfile.mkdtemp(dir=directory))
            log = RunRecord(fresh, {}, True, NoTracker()).log
            places = {"group": group, "clock": BudgetClock(), "console": Silent(), "log": log}
            train.run(model, optimizers, dataset, attention, fresh, **places)

        def bare() -> None:
            model, optimizers = begin()
            model.set_plan("looped")
            average = train.averaging(model)
            parts = train.batch_tokens // train.micro_batch_tokens
            with train.batches(dataset, group) as batches:
                for _ in range(STEPS):
                    optimizers.zero_grad()
                    for _ in range(parts):
                        batch = batches.next()
                        context = Context(attention, Packing.from_cu_seqlens(batch.cu_seqlens).to(group.device))
                        with model.precision.autocast(group.device):
                            logits = model.logits(model(batch.inputs.to(group.device), context), context)
                        loss = F.cross_entropy(logits[0], batch.targets[0].to(group.device)) / parts
                        loss.backward()
                    torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip.norm)
                    optimizers.step()
                    average.update(model)

        return {"compared": "trainer", "steps": STEPS, **ratio(bare, framework, pairs, group.device)}


def main() -> None:
    """Compose, compare, print a line of JSON for each comparison."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("words", nargs="*", metavar="key=value", help="overrides, as for `pgolf`")
    made.add_argument("--pairs", type=int, default=40, help="of forward and backward passes (default 40)")
    made.add_argument("--trainer-pairs", type=int, default=6, help=f"of {STEPS} steps each (default 6; 0: none)")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--compile", action="store_true", help="torch.compile both forward passes")
    options = made.parse_args()
    options.config_dir, options.config_path, options.config_name = None, None, "config"
    words = [*options.words, f"train.max_steps={STEPS}", "train.max_seconds=null"]
    words.append("train.checkpoint_seconds=1e9")  # a checkpoint is no part of a step
    recipe = build.recipe(compose(words, options).config)
    recipe.train.loop_at = 0.0
    device = torch.device(options.device)
    name, attention = chosen_attention(recipe, device)
    print(json.dumps({"attention": name, **compare_model(recipe, attention, device, options)}), flush=True)
    if options.trainer_pairs:
        print(json.dumps(compare_trainer(recipe, attention, options.trainer_pairs)))


if __name__ == "__main__":
    main()
