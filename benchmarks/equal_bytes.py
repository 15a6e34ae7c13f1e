"""Quantisers at equal bytes on trained models: what each costs in loss, in bits per byte and in weighted error.

    pgolf seed=42 ttt=none && pgolf seed=1 ttt=none && pgolf experiment=naive scale=mini data=pydocs ttt=none
    python benchmarks/equal_bytes.py runs/default-*-seed42 runs/default-*-seed1 runs/naive-*

For every run directory: its averaged weights are packed as published (SDClip int6 / int7, brotli), which sets the
bytes; then every row of QUANTISERS fills the same number of bytes, and 85 and 70 % of it. Scores are of the validation
text and, because damage is small beside the spread of a short text, of training text that the run has not come to.
Errors are weighted by Hessians and output gradients of other batches than those that the quantiser is calibrated on.

Writes equal_bytes.json and equal_bytes.md to benchmarks/results, and docs/equal-bytes.png. What the first has already
is not measured again (--again does).
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from equal_bytes_quantisers import QUANTISERS, Quantiser
from equal_bytes_report import AS_TRAINED, BASELINE, Key, Row, key_of, read_rows, write_reports, write_rows
from torch import Tensor

from pgolf.app import build
from pgolf.app.verbs.composing import parser as parser_of_overrides
from pgolf.app.verbs.rerun import open_source
from pgolf.console import Silent
from pgolf.data.dataset import Dataset
from pgolf.data.loaders import BatchShape
from pgolf.data.loaders.batch import in_memory
from pgolf.distributed import alone
from pgolf.files import read_json
from pgolf.kernels.attend import Attention
from pgolf.model.context import Context
from pgolf.model.gpt import GPT
from pgolf.model.roles import parameter_roles
from pgolf.quant import container
from pgolf.quant.calibration import BatchOf, Ground, TrainingText, calibrate
from pgolf.quant.compress import Compressor
from pgolf.quant.hessian import Calibration
from pgolf.run import Recipe
from pgolf.score.scorer import Scorer
from pgolf.train.weights import load as load_weights
from pgolf.ttt.fixed import Chunked
from pgolf.ttt.strategy import Bench
from pgolf.workshop import chosen_attention, prepared_data

SHARES = (1.0, 0.85, 0.7)
"""Bytes to fill, of those of the published quantiser."""
UNSEEN_ROWS = 64
"""Rows of train.sequence_tokens at the end of the training text."""
LATER = 64
"""Batches of training text that the judge of errors leaves to the quantisers."""


class LaterText(TrainingText):
    """Training text behind that of calibration, for the judge."""

    def open(self, ground: Ground) -> BatchOf:
        """The loader's batches from number LATER on."""
        give = super().open(ground)
        return lambda number: give(LATER + number)


@dataclass(frozen=True)
class Subject:
    """A trained model and what is measured with it.

    calibrations: what quantisers get; judges: the same of other batches. unseen: int64 [rows, sequence_tokens + 1];
    known: log-probabilities of the model as trained there, float32 [rows, sequence_tokens, vocabulary].
    """

    name: str
    directory: Path
    recipe: Recipe
    model: GPT
    attention: Attention
    dataset: Dataset
    state: dict[str, Tensor]
    calibrations: dict[str, Calibration]
    judges: dict[str, Calibration]
    unseen: Tensor
    known: Tensor


def open_subject(directory: Path) -> Subject:
    """Load a finished run, calibrate for the quantisers and for the judge, and note what the model says."""
    prepared = prepared_data(read_json(directory / "run.json"))
    if prepared is None:
        raise SystemExit(f"{directory}: the prepared data that it began with are gone")
    recipe, dataset = build.recipe(read_json(directory / "config.json")), Dataset(prepared)
    model = recipe.model(recipe.data.vocab_size, recipe.seed)
    model.load_state_dict(load_weights(directory / "model.safetensors"))
    model.set_plan("looped")
    attention = chosen_attention(recipe, alone().device)[1]
    state = {name: value.detach().clone() for name, value in model.eval().state_dict().items()}
    train = recipe.train
    shape = BatchShape(train.micro_batch_tokens // train.sequence_tokens * train.sequence_tokens, train.sequence_tokens)
    ground = Ground(model, attention, dataset.train_files, shape, recipe.seed, alone(), Silent())
    names = [name for name, role in parameter_roles(model).items() if role in ("matrix", "embedding", "head")]
    calibrations, judges = (
        calibrate(text, recipe.quant.calibration_batches, names, names, ground)
        for text in (TrainingText(), LaterText())
    )
    width = train.sequence_tokens + 1
    text = np.concatenate([in_memory(file) for file in sorted(dataset.train_files)])[-UNSEEN_ROWS * width :]
    unseen = torch.from_numpy(text.astype(np.int64)).reshape(UNSEEN_ROWS, width)
    known = log_probs(model, attention, unseen)
    return Subject(
        directory.name, directory, recipe, model, attention, dataset, state, calibrations, judges, unseen, known
    )


@torch.no_grad()
def log_probs(model: GPT, attention: Attention, rows: Tensor) -> Tensor:
    """What a model says of the next tokens of rows; float32 [rows, tokens - 1, vocabulary]."""
    context = Context(attention)
    parts = [model.logits(model(some[:, :-1], context), context).float() for some in rows.split(16)]
    return torch.cat([torch.log_softmax(part, dim=-1) for part in parts])


def compressor_of(subject: Subject, quantiser: Quantiser, target_bytes: int | None) -> Compressor:
    """The quantiser as the command line would compose it for this run, for so many bytes."""
    target = () if target_bytes is None else (f"quant.target_bytes={target_bytes}",)
    options = parser_of_overrides("equal_bytes", "", "").parse_args([])
    source = open_source(str(subject.directory), [f"quant={quantiser.option}", *quantiser.overrides, *target], options)
    compressor: Compressor = build.build(source.config["quant"], "quant")
    quantiser.change(compressor)
    return compressor


def measure(subject: Subject, weights: dict[str, Tensor]) -> dict[str, float]:
    """Losses and weighted errors of some weights."""
    model = subject.model
    model.load_state_dict(weights)
    scorer = Scorer(subject.dataset.validation(), alone())
    train = subject.recipe.train
    rows = max(1, train.micro_batch_tokens // train.sequence_tokens)
    strategy = Chunked(sequence_tokens=train.sequence_tokens, rows=rows)
    strategy.run(model, scorer, Bench(subject.recipe.seed, subject.attention, Silent()))
    total = scorer.total()
    said = log_probs(model, subject.attention, subject.unseen)
    unseen_loss = -float(said.gather(-1, subject.unseen[:, 1:, None]).mean())
    divergence = float((subject.known.exp() * (subject.known - said)).sum(dim=-1).mean())
    hessian, sensitivity = 0.0, 0.0
    for name, judge in subject.judges.items():
        error = subject.state[name].double() - weights[name].double()
        by_row = ((error @ judge.hessian.double()) * error).sum(dim=1)
        hessian += float(by_row.sum())
        assert judge.row_moments is not None  # all names have moments
        sensitivity += float((by_row * judge.row_moments.double()).sum())
    return {
        "val_loss": total.val_loss,
        "val_bpb": total.val_bpb,
        "unseen_loss": unseen_loss,
        "divergence": divergence,
        "hessian_error": hessian,
        "weighted_error": sensitivity,
    }


def pack(subject: Subject, name: str, quantiser: Quantiser, share: float, target_bytes: int | None) -> Row:
    """Quantise, write, read back and measure."""
    compressor = compressor_of(subject, quantiser, target_bytes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "artifact.pgolf"
        begun = time.process_time()
        report = compressor.compress(subject.state, parameter_roles(subject.model), subject.calibrations, {}, path)
        seconds = time.process_time() - begun
        weights, _ = container.load(path)
    row = Row(subject.name, name, share, report["weight_bytes"], seconds, **measure(subject, weights))
    print(f"  {share:4.2f} {name:24s} {row.bytes:9,d} bytes  {row.val_bpb:.5f} bpb  ", end="")
    print(f"divergence {row.divergence:.5f}  weighted error {row.weighted_error:.3g}  {seconds:.0f} s", flush=True)
    return row


def examine(directory: Path, names: list[str], known: dict[Key, Row], keep: Callable[[Row], None]) -> None:
    """Make the rows of one model that are not known: as trained, as published, the quantisers at each number of bytes;
    `keep` gets each at once."""
    wanted = [(BASELINE, 1.0), *((name, share) for share in SHARES for name in names if fits(name, share))]
    missing = [one for one in wanted if (directory.name, *one) not in known]
    if not missing:
        return
    print(directory.name, flush=True)
    subject = open_subject(directory)
    if (subject.name, AS_TRAINED, 0.0) not in known:
        keep(Row(subject.name, AS_TRAINED, 0.0, 0, 0.0, **measure(subject, subject.state)))
    if (BASELINE, 1.0) in missing:
        keep(pack(subject, BASELINE, Quantiser("gptq"), 1.0, None))
    for name, share in missing:
        if name != BASELINE:
            target = round(share * known[subject.name, BASELINE, 1.0].bytes)
            keep(pack(subject, name, QUANTISERS[name], share, target))


def fits(name: str, share: float) -> bool:
    """Whether a quantiser is tried at this share; SDClip at the first one is the published one."""
    return QUANTISERS[name].everywhere if share != SHARES[0] else name != "SDClip"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="finished run directories")
    parser.add_argument("--only", nargs="+", choices=list(QUANTISERS), default=list(QUANTISERS), metavar="NAME")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--plot", type=Path, default=Path(__file__).parent.parent / "docs" / "equal-bytes.png")
    parser.add_argument("--again", action="store_true", help="measure what is in the results already, too")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    known = {} if arguments.again else {key_of(row): row for row in read_rows(arguments.results)}

    def keep(row: Row) -> None:
        known[key_of(row)] = row
        write_rows(list(known.values()), arguments.results)

    for run in arguments.runs:
        examine(run.absolute(), list(dict.fromkeys(["SDClip", *arguments.only])), known, keep)
    write_reports(list(known.values()), arguments.results, arguments.plot)


if __name__ == "__main__":
    main()
