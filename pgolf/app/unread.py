"""Settings that nothing reads: on a part that is absent, or where another setting leaves them without effect.

Five published records carried such switches (one set a flag that only an older script read, one set names that the code
spells otherwise), and their ablations measured nothing. A key that no constructor takes is refused by the schema; these
are keys that one takes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from pgolf.app.check import advice
from pgolf.app.compose import Job
from pgolf.app.origin import Layer
from pgolf.app.replaced import leaves, package_of
from pgolf.digest import is_absent


class Made:
    """What a configuration makes, on the meta device, as far as a rule asks. Parts of other packages than pgolf read
    whatever they are given."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def part(self, key: str) -> Any:
        """What a root key describes."""
        from pgolf.app import build

        return build.build(self.config[key], key)

    @cached_property
    def model(self) -> Any:
        """The model."""
        import torch

        with torch.device("meta"):
            return self.part("model")(self.part("data").vocab_size, self.config["seed"])

    @cached_property
    def roles(self) -> set[str]:
        """The roles of its parameters, after the optimisers' rules by name."""
        from pgolf.app.dry import without_compiler
        from pgolf.model.roles import ROLES
        from pgolf.optim.roles import RoleOptimizers

        with without_compiler():
            made = self.part("optim")(self.model)
        return set(made.assignment) if isinstance(made, RoleOptimizers) else set(ROLES)

    @cached_property
    def stored_roles(self) -> set[str]:
        """The roles of its parameters."""
        from pgolf.model.roles import parameter_roles

        return set(parameter_roles(self.model).values())

    @property
    def loops(self) -> bool:
        """Whether some plan differs from the others."""
        from pgolf.model.gpt import GPT

        return not isinstance(self.model, GPT) or len(set(self.model.plans.values())) > 1

    @property
    def calibrates(self) -> bool:
        """Whether some scheme asks for what the model reads."""
        from pgolf.model.roles import parameter_roles
        from pgolf.quant.compress import Compressor

        quant = self.part("quant")
        if not isinstance(quant, Compressor):
            return True
        shapes = {name: tuple(tensor.shape) for name, tensor in self.model.state_dict().items()}
        roles = parameter_roles(self.model)
        return bool(quant.hessian_names(shapes, roles) or quant.moment_names(shapes, roles))


Reason = Callable[[str, Made], str | None]


@dataclass(frozen=True)
class Switch:
    """Keys (a pattern) and why nothing reads them, None where something does."""

    pattern: str
    reason: Reason


def _without_recurrence(key: str, made: Made) -> str | None:
    return None if made.loops else "every plan of this model is the same: set model.depth.num_loops or depth/repeat"


def _without_loops(key: str, made: Made) -> str | None:
    depth = made.config["model"].get("depth") or {}
    return "model.depth.num_loops=0 repeats no block" if depth.get("num_loops") == 0 else None


def _no_such_role(key: str, made: Made) -> str | None:
    part, role = key.split(".")[:2]
    roles = made.roles if part == "optim" else made.stored_roles
    return None if role in roles else f"this model has no parameters of the role {role}"


def _without_choice(key: str, made: Made) -> str | None:
    averaging = made.config["train"].get("averaging") or {}
    target = str(averaging.get("_target_", ""))
    return None if target.endswith(".SeveralDecays") else "train.averaging chooses among nothing: see several_decays"


def _without_calibration(key: str, made: Made) -> str | None:
    return None if made.calibrates else "no scheme of quant asks for what the model reads"


def _without_phases(key: str, made: Made) -> str | None:
    return "ttt.phases=0 has no global phase" if made.config["ttt"].get("phases") == 0 else None


def _momentum_of_schedule(key: str, made: Made) -> str | None:
    schedule = made.config["train"].get("momentum") or {}
    end, given = schedule.get("end"), made.config["optim"]["matrix"].get("momentum")
    return None if end in (None, given) else f"train.momentum sets it in every step, at last to {end}"


SWITCHES = (
    Switch("train.loop_at", _without_recurrence),
    *(Switch(f"model.depth.{name}", _without_loops) for name in ("loop_start", "loop_end", "ramp")),
    *(Switch(f"optim.{role}.*", _no_such_role) for role in ("matrix", "embedding", "head", "scalar", "gate")),
    *(Switch(f"quant.{role}.*", _no_such_role) for role in ("matrix", "embedding", "head", "scalar", "gate")),
    Switch("train.holdout_batches", _without_choice),
    Switch("quant.calibration_batches", _without_calibration),
    Switch("quant.calibration.*", _without_calibration),
    Switch("ttt.prefix_docs", _without_phases),
    Switch("ttt.sgd.*", _without_phases),
    Switch("optim.matrix.momentum", _momentum_of_schedule),
)


def unread(jobs: list[Job]) -> list[str]:
    """A sentence for every key of the command line that no job reads, and for every key of an experiment that it sets
    on a part which it leaves absent. The jobs are otherwise valid. In a sweep a key may have no effect in some jobs:
    the same words hold for all."""
    sentences: dict[str, None] = {}
    told = [{**_typed_on_absent(job), **_without_effect(job)} for job in jobs]
    for key, sentence in told[0].items() if told else ():
        if all(key in one for one in told):
            sentences[sentence] = None
    for job in jobs:
        sentences.update(dict.fromkeys(_experiments_on_absent(job)))
    return list(sentences)


def replaced_by_scale(job: Job) -> str | None:
    """What an experiment sets and the sizes of the scale replace, as one sentence; None where nothing is."""
    found = {}
    for layer in _experiment_layers(job):
        for key, value in _values(layer):
            now = _at(job.config, key)
            if f"{Path('size')}/" in job.origins.find(key) and now != value:
                found[key] = f"{key} ({value} -> {now})"
    if not found:
        return None
    return f"the sizes of the scale take the place of what the experiment sets: {', '.join(found.values())}"


def _typed_on_absent(job: Job) -> dict[str, str]:
    deleted = {one.lstrip("~").partition("=")[0] for one in job.overrides if one.startswith("~")}
    found = {}
    for key in job.origins.assignments:
        if key not in deleted and (part := _absent_above(job.config, key)) is not None:
            found[key] = f"{key} (command line): {part} is absent, so nothing reads it. {advice(job, part)}"
    return found


def _without_effect(job: Job) -> dict[str, str]:
    made, found = Made(job.config), {}
    for key in job.origins.assignments:
        for switch in SWITCHES:
            if fnmatchcase(key, switch.pattern) and (reason := switch.reason(key, made)) is not None:
                found[key] = f"{key} (command line) changes nothing: {reason}"
    return found


def _experiments_on_absent(job: Job) -> Iterator[str]:
    """Keys of experiments on parts that are absent and that no later layer took away."""
    layers = _experiment_layers(job)
    typed = set(job.origins.assignments)
    words = {one.partition("=")[0].lstrip("+~") for one in job.overrides}
    chosen = [_chosen(layer) for layer in layers] + [{package_of(one) for one in words - typed}]
    for index, layer in enumerate(layers):
        later = set().union(*chosen[index + 1 :])
        for key, _ in _values(layer):
            part = _absent_above(job.config, key)
            if part is not None and not any(f"{part}.".startswith(f"{one}.") for one in later):
                yield f"{key} ({job.origins.find(key) or layer.file.name}): {part} is absent, so nothing reads it"


def _experiment_layers(job: Job) -> list[Layer]:
    return [layer for layer in job.origins.layers if layer.file.parent.name == "experiment"]


def _body(layer: Layer) -> dict[str, Any]:
    body = yaml.safe_load(layer.file.read_text("utf-8"))
    return body if isinstance(body, dict) else {}


def _values(layer: Layer) -> Iterator[tuple[str, Any]]:
    body = {key: value for key, value in _body(layer).items() if key != "defaults"}
    for key in leaves(body):
        yield key, _at(body, key)


def _chosen(layer: Layer) -> set[str]:
    """The packages whose part an experiment's defaults list replaces."""
    named = [key for one in _body(layer).get("defaults", []) if isinstance(one, dict) for key in one]
    return {package_of(str(key).removeprefix("override ").strip().lstrip("/")) for key in named}


def _absent_above(config: dict[str, Any], key: str) -> str | None:
    """The absent part that a key lies inside, by its dotted name."""
    node: Any = config
    names = key.split(".")
    for depth, name in enumerate(names):
        if is_absent(node):
            return ".".join(names[:depth])
        node = node.get(name) if isinstance(node, dict) else None
    return None


def _at(tree: Any, key: str) -> Any:
    for name in key.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree
