"""What a quantised tensor is made of, and how it becomes a tensor again: all that loading needs."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Encoded:
    """One tensor as symbols and side information.

    `decoder` is a key of DECODERS; `scheme` is the label people read ("gptq int6"); `shape` is the
    tensor's; `parts` holds numpy arrays: for decoder "rows" the int8 `symbols` [rows, cols] and
    float16 `scales` [rows], for decoder "plain" the `values` in the tensor's shape.
    """

    decoder: str
    scheme: str
    shape: tuple[int, ...]
    parts: dict[str, np.ndarray]


def _decode_rows(parts: dict[str, np.ndarray]) -> Tensor:
    """Symbols times the scale of their row, float32 [rows, cols]."""
    symbols = torch.from_numpy(parts["symbols"]).float()
    return symbols * torch.from_numpy(parts["scales"]).float()[:, None]


def _decode_plain(parts: dict[str, np.ndarray]) -> Tensor:
    """The values as they were stored."""
    return torch.from_numpy(parts["values"])


DECODERS: dict[str, Callable[[dict[str, np.ndarray]], Tensor]] = {
    "rows": _decode_rows,
    "plain": _decode_plain,
}


def decode(encoded: Encoded) -> Tensor:
    """The dequantised tensor; float32 for rows, the stored dtype for plain values.

    Raises ValueError when the decoder is unknown, a part is missing or a shape does not fit.
    """
    if encoded.decoder not in DECODERS:
        raise ValueError(f"unknown decoder {encoded.decoder!r}; this version knows {', '.join(DECODERS)}.")
    try:
        tensor = DECODERS[encoded.decoder](encoded.parts)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"the parts of the tensor do not fit together ({error}).") from error
    if tuple(tensor.shape) != encoded.shape:
        raise ValueError(f"decoded shape {tuple(tensor.shape)} is not {encoded.shape}.")
    return tensor
