"""The averaged weights between training and compression: a safetensors file that knows its own checksum."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load as parse
from safetensors.torch import save as serialise
from torch import Tensor

from pgolf.errors import UserError
from pgolf.files import write_bytes

CHECKSUM = "sha256"  # key of the file's metadata


def save(path: Path, weights: dict[str, Tensor]) -> None:
    """Write `weights` (contiguous, on the CPU or a GPU) atomically."""
    write_bytes(path, serialise(weights, {CHECKSUM: checksum(weights)}))


def load(path: Path) -> dict[str, Tensor]:
    """Read weights to the CPU. UserError when the file is missing or damaged.

    A safetensors file of other origin carries no checksum; only its structure can be checked.
    """
    try:
        data = path.read_bytes()
        weights = parse(data)
        length = int.from_bytes(data[:8], "little")
        recorded = json.loads(data[8 : 8 + length]).get("__metadata__", {}).get(CHECKSUM)
    except Exception as error:  # safetensors raises its own type for damaged files
        raise _unreadable(path, str(error)) from error
    if recorded not in (None, checksum(weights)):
        raise _unreadable(path, "its checksum does not match")
    return weights


def checksum(weights: dict[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the tensors, in the order of their names."""
    total = hashlib.sha256()
    for name, value in sorted(weights.items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _unreadable(path: Path, reason: str) -> UserError:
    return UserError(f"cannot read the averaged weights {path}: {reason}. Delete the run directory to train again.")
