"""What the framework adds to a training step: pgolf's Trainer against a bare loop, alternating in one process.

Prints the ratio bare / framework (1.00: no overhead; 0.98 is the promise) from the median of alternating blocks.
"""

import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from pgolf.app.machine import prepare_process

prepare_process()

from pgolf.console import Silent  # noqa: E402
from pgolf.data.loaders import BatchShape, DocumentPackingLoader  # noqa: E402
from pgolf.data.shards import write_shard  # noqa: E402
from pgolf.distributed import alone  # noqa: E402
from pgolf.kernels.attend import sdpa  # noqa: E402
from pgolf.kernels.packing import Packing  # noqa: E402
from pgolf.model.attention import CausalSelfAttention  # noqa: E402
from pgolf.model.context import Context  # noqa: E402
from pgolf.model.exclude import own_value  # noqa: E402
from pgolf.model.gpt import GPT  # noqa: E402
from pgolf.model.head import SoftCap  # noqa: E402
from pgolf.model.mlp import LeakyReLUSquared  # noqa: E402
from pgolf.model.plan import Depth  # noqa: E402
from pgolf.model.rope import Rotary  # noqa: E402
from pgolf.optim.averaging import ExponentialAverage  # noqa: E402
from pgolf.optim.muon import Muon  # noqa: E402
from pgolf.optim.roles import RoleOptimizers  # noqa: E402
from pgolf.optim.schedule import MomentumRamp, Warmdown  # noqa: E402
from pgolf.record import RunRecord  # noqa: E402
from pgolf.train.clock import BudgetClock  # noqa: E402
from pgolf.train.loop import Trainer  # noqa: E402

STEPS, BLOCKS = 12, 8


class Dataset:
    """Random tokens in the shape the trainer reads."""

    def __init__(self, directory: Path) -> None:
        tokens = torch.randint(4, 4096, (400_000,), generator=torch.Generator().manual_seed(0)).numpy().astype("uint16")
        tokens[::900] = 1
        self.train_files = [directory / "train_000000.bin"]
        write_shard(self.train_files[0], tokens)


class NoTracker:
    """Events go to metrics.jsonl only."""

    def log(self, event: dict[str, object]) -> None:
        """Drop the event."""


def make_model() -> tuple[GPT, RoleOptimizers]:
    """The default model at mini scale with its optimisers."""
    attention = partial(
        CausalSelfAttention,
        num_heads=3,
        num_kv_heads=1,
        rope=Rotary(dims=16, base=1e4),
        exclude=partial(own_value, last=None),
        gate=None,
    )
    model = GPT(
        4096,
        0,
        dim=96,
        qk_gain=5.0,
        softcap=partial(SoftCap, cap=30.0),
        embedding_std=0.005,
        layer_scale=True,
        skip_gates=True,
        depth=Depth(num_layers=4, loop_start=1, loop_end=2, num_loops=1, skips=True),
        attention=attention,
        mlp=partial(LeakyReLUSquared, multiple=4.0, slope=0.5),
    )
    muon = partial(
        Muon,
        lr=0.026,
        momentum=0.97,
        weight_decay=0.095,
        nesterov=True,
        row_normalise=True,
        newton_schulz_steps=5,
        coefficients="polar_express",
    )
    adam = partial(torch.optim.AdamW, lr=0.02)
    return model, RoleOptimizers(model, matrix=muon, embedding=adam, scalar=adam, head=None, gate=None)


def trainer() -> Trainer:
    """The default loop at mini scale, looped from the first step."""
    return Trainer(
        max_steps=STEPS,
        max_seconds=None,
        batch_tokens=2048,
        micro_batch_tokens=1024,
        sequence_tokens=256,
        loader=DocumentPackingLoader,
        prefetch_batches=2,
        loop_at=0.0,
        clip_norm=0.3,
        schedule=Warmdown(fraction=0.75, floor=0.1),
        momentum=MomentumRamp(start=0.92, end=0.97, steps=100),
        averaging=partial(ExponentialAverage, decay=0.9),
        checkpoint_seconds=1e9,  # a block must never continue the one before it
    )


def framework(dataset: Dataset, directory: Path) -> float:
    """Seconds of one block of steps by the Trainer, events written to disk."""
    model, optimizers = make_model()
    record = RunRecord(directory, {}, True, NoTracker())
    begun = time.perf_counter()
    trainer().run(
        model,
        optimizers,
        dataset,
        sdpa,
        directory / "none",
        group=alone(),
        clock=BudgetClock(),
        console=Silent(),
        log=record.log,
    )
    return time.perf_counter() - begun


def bare(dataset: Dataset) -> float:
    """Seconds of the same steps written out by hand."""
    model, optimizers = make_model()
    model.set_plan("looped")
    begun = time.perf_counter()
    loader = DocumentPackingLoader(dataset.train_files, 1, 0, BatchShape(1024, 256, micro_batches=2))
    average = ExponentialAverage(model, decay=0.9)
    for _ in range(STEPS):
        optimizers.zero_grad()
        for _ in range(2):
            batch = loader.next()
            context = Context(sdpa, Packing.from_cu_seqlens(batch.cu_seqlens))
            logits = model.logits(model(batch.inputs, context), context)
            (torch.nn.functional.cross_entropy(logits[0], batch.targets[0]) / 2).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        optimizers.step()
        average.update(model)
    return time.perf_counter() - begun


def main() -> None:
    """Alternate the two and print the ratio."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        dataset = Dataset(directory)
        bare(dataset), framework(dataset, directory)  # warm up
        pairs = [(bare(dataset), framework(dataset, directory)) for _ in range(BLOCKS)]
    ratio = statistics.median(b / f for b, f in pairs)
    print(
        json.dumps(
            {
                "bare_over_framework": round(ratio, 4),
                "bare_seconds": statistics.median(b for b, _ in pairs),
                "framework_seconds": statistics.median(f for _, f in pairs),
                "steps": STEPS,
                "blocks": BLOCKS,
            }
        )
    )


if __name__ == "__main__":
    main()
