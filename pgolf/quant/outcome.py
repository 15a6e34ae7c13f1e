"""What became of the tensors of an artifact: error and bytes, for the run's report."""

from typing import Any

import torch
from torch import Tensor

from pgolf.quant.container import StoredTensor
from pgolf.quant.encoded import decode


def error_norm(stored: StoredTensor, tensor: Tensor) -> float:
    """Norm of what quantisation changed in one tensor."""
    return (decode(stored.encoded).float() - tensor.detach().cpu().to(torch.float32)).norm().item()


def tensor_row(stored: StoredTensor, tensor: Tensor) -> dict[str, Any]:
    """What became of one tensor; the error is relative to its norm."""
    error, norm = error_norm(stored, tensor), tensor.detach().cpu().to(torch.float32).norm().item()
    return {
        "tensor": stored.name,
        "role": stored.role,
        "scheme": stored.encoded.scheme,
        "elements": tensor.numel(),
        "relative_error": error / norm if norm > 0 else error,
    }


def class_rows(tensors: list[dict[str, Any]], streams: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Bytes of every role: streams never mix roles, so the sums are exact."""
    rows = []
    for role in dict.fromkeys(row["role"] for row in tensors):
        members = [row for row in tensors if row["role"] == role]
        own = [stream for stream in streams if stream["name"].split("/")[0] == role]
        elements = sum(row["elements"] for row in members)
        coded = sum(stream["coded"] for stream in own)
        rows.append(
            {
                "role": role,
                "schemes": sorted({row["scheme"] for row in members}),
                "tensors": len(members),
                "elements": elements,
                "raw_bytes": sum(stream["raw"] for stream in own),
                "coded_bytes": coded,
                "bits_per_element": 8 * coded / elements if elements else 0.0,
            }
        )
    return rows
