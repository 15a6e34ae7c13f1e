"""Checkpoints of the record scripts (`final_model.pt`): a state dict, its matrices in banks or by themselves.

From PR 1530 on the scripts train with four banks, which hold the matrices of all layers one after the other (queries
before output projections, keys before values); earlier ones name every matrix. Values and dtypes are kept to the bit in
both directions.
"""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from pgolf.errors import UserError
from pgolf.files import atomic_open
from pgolf.interop.published import from_published, to_published

BANKS = {
    "qo_bank": ("attn.c_q", "attn.proj"),
    "kv_bank": ("attn.c_k", "attn.c_v"),
    "mlp_up_bank": ("mlp.fc",),
    "mlp_down_bank": ("mlp.proj",),
}
"""Bank [kinds * layers, rows, cols] -> the kinds of matrices in it, each for all layers."""
TOLD = 5
"""So many names of each problem are given."""

State = dict[str, Tensor]


def read(path: Path) -> State:
    """The tensors of a checkpoint under the names of the models here, matrices by themselves.

    Nothing but tensors is ever unpickled. UserError for a file that is missing, damaged, or holds anything else.
    """
    return from_published(unbanked(_checked(_loaded(path), path)))


def write(path: Path, weights: Mapping[str, Tensor], banked: bool) -> None:
    """Write weights of a model here as a checkpoint with published names, atomically; `banked` as from PR 1530 on."""
    state = {to_published(name): value.detach().cpu().contiguous() for name, value in weights.items()}
    with atomic_open(path) as file:
        torch.save(_banked(state) if banked else state, file)


def _loaded(path: Path) -> object:
    try:
        _refuse_compressed(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds something else than tensors, or is damaged. It was not opened further: reading it could run "
            "the code of whoever wrote it. Save the state dict alone: torch.save(model.state_dict(), FILE)."
        ) from error
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {path}: {error.strerror or error}.") from error
    except Exception as error:  # torch raises many types for damaged files
        raise UserError(f"{path} is not a checkpoint that torch.save wrote, or is damaged: {_first(error)}.") from error


def _refuse_compressed(path: Path) -> None:
    """Raise UserError for a file that would become larger when it is opened: torch.save compresses nothing."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            swollen = [one.filename for one in archive.infolist() if one.file_size > one.compress_size]
        if swollen:
            raise UserError(f"{path} is not a checkpoint that torch.save wrote: {swollen[0]} in it is compressed.")


def _first(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")


def _checked(content: object, path: Path) -> State:
    """`content` when it is a state dict of plain floating-point tensors."""
    if not isinstance(content, Mapping) or not content:
        raise UserError(
            f"{path} holds a {type(content).__name__} and no state dict: give the file of the weights alone."
        )
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(
                f"{path} holds {name!r}, a {type(value).__name__}, where a state dict has tensors alone: save "
                "model.state_dict() by itself."
            )
        if value.layout != torch.strided or value.device.type != "cpu" or not value.is_floating_point():
            raise UserError(f"{path}: tensor {name} is not a dense tensor of floating-point numbers.")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UserError(f"{path}: tensor {name} has more elements than the file has numbers for it.")
        if not torch.isfinite(value).all():
            raise UserError(f"{path}: tensor {name} holds values that are infinite or not a number.")
    return {str(name): value.detach() for name, value in content.items()}


def unbanked(state: State) -> State:
    """A published state dict whose banks are taken apart. UserError for a bank that is none."""
    found: State = {}
    for name, value in state.items():
        if name not in BANKS:
            found[name] = value.clone()
            continue
        kinds = BANKS[name]
        if value.ndim != 3 or not len(value) or len(value) % len(kinds):
            raise UserError(
                f"{name} has shape {list(value.shape)}; it should be [{len(kinds)} x layers, rows, columns]."
            )
        layers = len(value) // len(kinds)
        for index, matrix in enumerate(value):
            found[f"blocks.{index % layers}.{kinds[index // layers]}.weight"] = matrix.clone()
    return found


def _banked(state: State) -> State:
    """A published state dict with its matrices in banks. UserError where layers lack some or differ in shape."""
    rest, banks = dict(state), {}
    layers = 1 + max((int(name.split(".")[1]) for name in state if name.startswith("blocks.")), default=-1)
    for bank, kinds in BANKS.items():
        names = [f"blocks.{layer}.{kind}.weight" for kind in kinds for layer in range(layers)]
        shapes = {tuple(state[name].shape) for name in names if name in state}
        if len(shapes) != 1 or not set(names) <= state.keys():
            raise UserError(
                f"the matrices of {bank} cannot be stacked: their shapes are {sorted(shapes)}; write them unbanked."
            )
        banks[bank] = torch.stack([rest.pop(name) for name in names])
    return banks | rest


def fit(weights: State, model: nn.Module, path: Path) -> State:
    """The weights in the shapes and dtypes of `model` (which may be on the meta device), not one bit lost.

    UserError with every tensor that is missing, unknown, of another shape, or whose numbers the model's dtype cannot
    hold.
    """
    wanted = model.state_dict()
    fitting = {name: value for name, value in weights.items() if name in wanted}
    for name, value in fitting.items():  # the caps of the softcap have no dimension in some scripts
        if value.numel() == wanted[name].numel() == 1:
            fitting[name] = value.reshape(wanted[name].shape)
    problems = {
        "missing": [name for name in wanted if name not in weights],
        "unknown": [name for name in weights if name not in wanted],
        "of another shape": [
            f"{name} ({list(value.shape)}, the model has {list(wanted[name].shape)})"
            for name, value in fitting.items()
            if value.shape != wanted[name].shape
        ],
        "too precise": [
            f"{name} ({_dtype(value)}, the model has {_dtype(wanted[name])})"
            for name, value in fitting.items()
            if not torch.equal(value.to(wanted[name].dtype).to(value.dtype), value)
        ],
    }
    told = [f"{what}: {_some(names)}" for what, names in problems.items() if names]
    if told:
        hint = ""
        if problems["too precise"]:
            hint = " For dtypes see model.precision.parameters (model/precision=fp32 holds all of them)."
        raise UserError(
            f"{path} does not fit the configured model: {'; '.join(told)}. Choose its preset "
            f"(experiment=NAME, see pgolf records) and its data.{hint}"
        )
    return {name: fitting[name].to(wanted[name].dtype).contiguous() for name in wanted}


def _some(names: list[str]) -> str:
    more = f" and {len(names) - TOLD} more" if len(names) > TOLD else ""
    return f"{', '.join(names[:TOLD])}{more}"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
