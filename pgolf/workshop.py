"""What a run works with: its recipe, the processes, and where things are written."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgolf.audit.probe import Audit
from pgolf.console import Console
from pgolf.data.config import Data
from pgolf.data.dataset import Dataset
from pgolf.data.validation import ValidationSet
from pgolf.distributed import Group
from pgolf.errors import UserError
from pgolf.kernels.attend import Attention, select
from pgolf.kernels.fused.choice import MODULES
from pgolf.kernels.fused.choice import select as select_fused
from pgolf.kernels.fused.kernels import Fused
from pgolf.model.gpt import GPT
from pgolf.optim.roles import RoleOptimizers
from pgolf.quant.compress import Compressor
from pgolf.record import RunRecord, Tracker
from pgolf.train.loop import Trainer
from pgolf.ttt.forward import Forward, compiled, log_probs_at, why_not
from pgolf.ttt.strategy import Bench, Strategy


@dataclass(frozen=True)
class Recipe:
    """What one run is made of: the parts that the configuration describes."""

    name: str
    seed: int
    kernels: str
    fused: str | list[str]
    data_root: Path
    data: Data
    model: Callable[[int, int], GPT]
    optim: Callable[[GPT], RoleOptimizers]
    train: Trainer
    quant: Compressor
    ttt: Strategy
    audit: Audit
    # configuration nodes that go into the artifact: what rebuilds the model and its scoring
    description: dict[str, Any]
    # modules whose code a submission of this run would hold: those the configuration names and what every run needs
    modules: tuple[str, ...]
    compile_scoring: bool = False
    cache_root: Path | None = None  # for what takes long to make and is the same for every run


def chosen_attention(recipe: Recipe, device: torch.device) -> tuple[str, Attention]:
    """The attention back end of a recipe and its name: one that works for the heads and the precision of its model."""
    model = _weightless(recipe)
    dtype = model.precision.activations(device)
    if not model.attentions:  # nothing will call it
        return select(recipe.kernels, device, dtype)
    attention = model.attention
    heads = (attention.num_heads, attention.num_kv_heads, attention.head_dim)
    name, back_end = select(recipe.kernels, device, dtype, heads)
    return name if attention.entmax is None else f"entmax, which no back end computes, {name} is not called", back_end


def scoring_forward(recipe: Recipe, group: Group) -> Forward:
    """The forward of scores, compiled where the recipe says so; every process of the group asks for it together.
    UserError where that cannot be, on any of them."""
    if not recipe.compile_scoring:
        return log_probs_at
    reason = next((one for one in group.gather(why_not(group.device)) if one), None)
    if reason is not None:
        raise UserError(f"compile_scoring=true, but torch.compile fails here: {reason}")
    return compiled()


def _weightless(recipe: Recipe) -> GPT:
    with torch.device("meta"):
        return recipe.model(recipe.data.vocab_size, recipe.seed)


def prepared_data(begun: dict[str, Any]) -> Path | None:
    """Where the data lie that a run began with, from its run.json; None when it has none yet or they are gone."""
    directory = begun.get("stages", {}).get("prepare", {}).get("result", {}).get("data_directory")
    return Path(directory) if directory is not None and Path(directory).is_dir() else None


def refuse_other_data(begun: dict[str, Any], dataset: Dataset, directory: Path | None) -> None:
    """Raise UserError when `dataset` is not the one that the run with run.json `begun` began with."""
    known = begun.get("data_digest")
    if known not in (None, dataset.digest):
        raise UserError(
            f"{directory} began with other data (digest {known[:12]}, now {dataset.digest[:12]}): its "
            "stages would not belong together. Bring the documents back, or start again with force=true."
        )


class Workshop:
    """A run in progress: the recipe, the group of processes, and where things are written."""

    def __init__(
        self,
        recipe: Recipe,
        identity: dict[str, Any],
        directory: Path,
        group: Group,
        console: Console,
        tracker: Tracker,
        begun: dict[str, Any] | None = None,
    ) -> None:
        self.recipe, self.directory, self.group, self.console = recipe, directory, group, console
        directory.mkdir(parents=True, exist_ok=True)
        self.record = RunRecord(directory, identity, group.leads, tracker)
        self._begun = dict(begun if begun is not None else self.record.data)
        group.barrier()  # everyone has read the same record before the leader writes it
        kernel, self.attention = chosen_attention(recipe, group.device)
        console.say(f"{group.world_size} process(es) on {group.device}; attention: {kernel}")

    @cached_property
    def dataset(self) -> Dataset:
        """The data this run began with, or the prepared data of a new run; the leader prepares them, the others wait.

        Raises UserError when the data are no longer those that the run began with.
        """
        prepared = prepared_data(self._begun)
        if prepared is None:
            if self.group.leads:
                self.recipe.data.prepare(self.recipe.data_root, self.console)
            self.group.barrier()
            prepared = self.recipe.data.directory(self.recipe.data_root)
        dataset = Dataset(prepared)
        dataset.refuse(self.recipe.data.differences(dataset.manifest))
        refuse_other_data(self._begun, dataset, self.directory)
        return dataset

    @cached_property
    def validation(self) -> ValidationSet:
        """The validation text."""
        return self.dataset.validation()

    @cached_property
    def fused(self) -> Fused:
        """The fused kernels of training; what there is to say of the choice is said. UserError where one that was
        asked for cannot be used."""
        dtype = _weightless(self.recipe).precision.activations(self.group.device)
        fused, remarks = select_fused(self.recipe.fused, self.group.device, dtype)
        for remark in remarks:
            self.console.say(remark)
        return fused

    @property
    def kernel_modules(self) -> list[str]:
        """Modules of the fused kernels that training used: a submission's code would hold them."""
        known = {**self._begun.get("stages", {}), **self.record.data["stages"]}
        return [MODULES[name] for name in known.get("train", {}).get("result", {}).get("fused", [])]

    def new_model(self) -> GPT:
        """A model with its initial weights on the group's device."""
        model = self.recipe.model(self.recipe.data.vocab_size, self.recipe.seed)
        return model.to(self.group.device)

    def model_with(self, weights: dict[str, Tensor]) -> GPT:
        """A model with the given weights that walks the plan of the end of training."""
        model = self.new_model()
        missing, unknown = model.load_state_dict(weights, strict=False)
        if missing or unknown:
            raise UserError(
                f"the weights do not fit this model: missing {missing[:3]}, unknown {unknown[:3]}. "
                "They come from another configuration."
            )
        model.set_plan("looped")
        return model.eval()

    def bench(self, title: str) -> Bench:
        """What strategies work with."""
        return Bench(self.recipe.seed, self.attention, self.console, title, self.record.log, forward=self.forward)

    @cached_property
    def forward(self) -> Forward:
        """The forward of all scores; one, so that what was compiled for a stage serves the next."""
        return scoring_forward(self.recipe, self.group)
