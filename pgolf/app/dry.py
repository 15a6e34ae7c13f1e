"""The dry build: every part constructed once, the model and its optimizer on the meta device.

Constructors check what a type cannot say (a width that its heads do not divide); here their
complaints become problems of the configuration, before any work.
"""

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pgolf.app.build import PARTS, BuildError, blaming, build
from pgolf.app.schema import Problem, value_at
from pgolf.errors import UserError

KEPT_OUT = "__dynamo_disable"  # where torch keeps the form of a function that no graph has in it


def dry_build(config: dict[str, Any], skip: frozenset[str] = frozenset()) -> list[Problem]:
    """Build what can be built; problems of every part at once.

    `skip` names the root keys that are known to be wrong already.
    """
    problems: list[Problem] = []
    parts: dict[str, Any] = {}
    for key in (*PARTS, "track", "launch"):
        if key not in skip:
            _attempt(problems, config, functools.partial(_build_part, config, key, parts))
    if "kernels" not in skip:
        problems += _check_kernels(config["kernels"])
    if "fused" not in skip:
        problems += _check_fused(config.get("fused", "auto"))
    if "model" in parts and "data" in parts:
        _attempt(problems, config, lambda: _build_model(config, parts))
    if "train" in parts and "launch" in parts:
        problems += _check_sharing(parts)
    return problems


def _check_sharing(parts: dict[str, Any]) -> list[Problem]:
    """Whether the processes can share the micro-batches of a step; under torchrun it says how many there are."""
    from pgolf.train.loop import Trainer

    if not isinstance(parts["train"], Trainer):
        return []
    processes = int(os.environ.get("WORLD_SIZE", "0")) or parts["launch"].processes()
    try:
        parts["train"].micro_steps(processes)
    except UserError as error:
        return [Problem("launch.nproc", processes, str(error))]
    return []


def _build_part(config: dict[str, Any], key: str, parts: dict[str, Any]) -> None:
    parts[key] = build(config[key], key)


def _check_kernels(kernels: str) -> list[Problem]:
    from pgolf.kernels.attend import BACKENDS

    accepted = ("auto", *BACKENDS)
    return [] if kernels in accepted else [Problem("kernels", kernels, f"expected one of {', '.join(accepted)}")]


def _check_fused(fused: str | list[str]) -> list[Problem]:
    from pgolf.kernels.fused.choice import unknown

    reason = unknown(fused)
    return [Problem("fused", fused, reason)] if reason else []


def _build_model(config: dict[str, Any], parts: dict[str, Any]) -> None:
    import torch

    from pgolf.train.loop import Trainer
    from pgolf.train.loss.objective import shed

    with torch.device("meta"):
        with blaming(config["model"], "model"):
            model = parts["model"](parts["data"].vocab_size, config["seed"])
        if isinstance(parts.get("train"), Trainer):
            with blaming(config["train"], "train"):
                parts["train"].activation(list(model.plans))
                parts["train"].equip(model, config["seed"])
                parts["train"].averaging(model)
        if "optim" in parts:
            with blaming(config["optim"], "optim"), without_compiler():
                parts["optim"](model)
        shed(model, {})  # what only training has is not stored
    if "quant" in parts:
        _check_calibration(model, parts["quant"])
    if {"quant", "train"} <= parts.keys():
        _check_rounding(config, model, parts)


@contextmanager
def without_compiler() -> Iterator[None]:
    """Inside, an optimiser is made without importing torch._dynamo.

    torch does that with the first one, to keep its add_param_group out of graphs. Nothing is compiled here, and the
    import with all that it needs is a third of the time in which a command line is refused.
    """
    import torch

    add = getattr(torch.optim.Optimizer.add_param_group, "__wrapped__", None)
    if add is None or "torch._dynamo" in sys.modules or hasattr(add, KEPT_OUT):
        yield
        return
    setattr(add, KEPT_OUT, add)
    try:
        yield
    finally:
        delattr(add, KEPT_OUT)


def _check_calibration(model: Any, quant: Any) -> None:
    """Whether every tensor whose scheme wants a Hessian has inputs to gather one from, or is a table that is looked up;
    else training would be in vain."""
    from pgolf.model.roles import parameter_roles
    from pgolf.quant.compress import Compressor

    if not isinstance(quant, Compressor):
        return
    shapes, roles = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}, parameter_roles(model)
    try:
        names = quant.hessian_names(shapes, roles)
    except UserError as error:
        raise BuildError("quant", str(error)) from error
    sites = model.calibration_sites()
    if lacking := [name for name in names if name not in sites and roles[name] != "embedding"]:
        raise BuildError(
            "quant",
            f"tensor {lacking[0]} multiplies nothing, so its scheme has no Hessian: choose one for "
            "its role that needs none, or quant=int8",
        )


def _check_rounding(config: dict[str, Any], model: Any, parts: dict[str, Any]) -> None:
    """Whether training with rounded weights rounds something, for enough steps, and its promise can be kept."""
    from pgolf.optim.averaging import ExponentialAverage
    from pgolf.quant.compress import Compressor
    from pgolf.train.loop import Trainer

    quant, train = parts["quant"], parts["train"]
    if isinstance(quant, Compressor) and isinstance(train, Trainer) and quant.qat is not None:
        with blaming(config["quant"], "quant"):
            rounding = quant.training(model, lambda names, with_moments: {})
            train.refuse_rounding(rounding, train.course(list(model.plans)))
        averaging = train.averaging(model)
        if quant.qat.exact and not (isinstance(averaging, ExponentialAverage) and averaging.decay == 0.0):
            raise BuildError(
                "train.averaging",
                "this rule of quant.qat promises that the artifact holds what training saw, and an average of weights "
                "is what it never saw: choose train/averaging=last",
            )


def _attempt(problems: list[Problem], config: dict[str, Any], action: Callable[[], None]) -> None:
    try:
        action()
    except BuildError as error:
        problems.append(Problem(error.key, value_at(config, error.key), error.reason))
