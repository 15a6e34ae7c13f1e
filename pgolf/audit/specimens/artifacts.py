"""Pipelines from a data set to an artifact: a legal one, and three that saw the validation text on the way."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pgolf.audit.specimens.ground import TEXT_VOCABULARY, tiny_model
from pgolf.console import Silent
from pgolf.data.dataset import Dataset
from pgolf.data.loaders import BatchShape, SequentialLoader
from pgolf.model.gpt import GPT
from pgolf.model.roles import parameter_roles
from pgolf.quant.compress import Compressor
from pgolf.quant.hessian import collect_hessians
from pgolf.quant.schemes import Gptq, Half, Int8Rows

BATCH = BatchShape(64, 32)
Batches = Callable[[], Tensor]
"""Gives tokens int64 [rows, columns + 1]."""


@dataclass(frozen=True)
class Pipeline:
    """Two steps of training, calibration, quantisation and packing. warm_up, last_steps: whether a step on validation
    text comes before or after training; calibration: the text behind the Hessians."""

    warm_up: bool = False
    last_steps: bool = False
    calibration: str = "train"

    def make(self, dataset: Dataset, directory: Path) -> Path:
        """The artifact, made in `directory`."""
        directory.mkdir(parents=True, exist_ok=True)
        model = tiny_model(TEXT_VOCABULARY)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        train = _training(dataset)
        steps = [_validation(dataset)] * self.warm_up + [train, train] + [_validation(dataset)] * self.last_steps
        for next_batch in steps:
            _step(model, optimizer, next_batch())
        calibration = train if self.calibration == "train" else _validation(dataset)
        state = {name: value.detach() for name, value in model.state_dict().items()}
        roles = parameter_roles(model)
        quant = Compressor(
            matrix=Gptq(bits=6, clip_sigmas=12.85, block_size=128),
            embedding=Int8Rows(),
            head=None,
            scalar=Half(),
            gate=Half(),
            coder="brotli",
            calibration_batches=1,
            min_quantised_elements=64,
        )
        names = quant.hessian_names({name: tuple(value.shape) for name, value in state.items()}, roles)
        sites = model.calibration_sites()
        batch = calibration()
        hessians = collect_hessians({name: sites[name] for name in names}, [lambda: model(batch[:, :-1])], Silent())
        path = directory / "artifact.pgolf"
        quant.compress(state, roles, hessians, {}, path)
        return path


def _training(dataset: Dataset) -> Batches:
    loader = SequentialLoader(dataset.train_files, 1, 0, BATCH)

    def next_batch() -> Tensor:
        batch = loader.next()
        return torch.cat([batch.inputs, batch.targets[:, -1:]], dim=1)

    return next_batch


def _validation(dataset: Dataset) -> Batches:
    """The first validation tokens, as AWQ of PR 1919 had them."""
    return lambda: torch.from_numpy(dataset.validation().tokens[:66].astype("int64")).view(2, 33)


def _step(model: GPT, optimizer: torch.optim.Optimizer, tokens: Tensor) -> None:
    optimizer.zero_grad()
    logits = model.logits(model(tokens[:, :-1]))
    cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    optimizer.step()
