"""The newest complete training state, in one file that is either whole or refused.

Layout of state.pgolf: 8 bytes b"PGOLFCP1", 32 bytes SHA-256 of the rest, then torch.save's archive (read back with
weights_only=True).
"""

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from pgolf.errors import UserError
from pgolf.files import write_bytes

MAGIC = b"PGOLFCP1"


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, lists, dicts) atomically."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    write_bytes(path, MAGIC + hashlib.sha256(payload).digest() + payload)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU. Raises UserError when it is damaged."""
    data = path.read_bytes()
    payload = data[40:]
    if data[:8] != MAGIC or hashlib.sha256(payload).digest() != data[8:40]:
        raise UserError(
            f"checkpoint {path} is damaged (its checksum does not match): "
            "delete it to train this run again from step 0."
        )
    return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
