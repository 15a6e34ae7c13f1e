"""Autocast for what it does not reach: custom operations and other libraries' kernels."""

import torch
from torch import Tensor


def autocast(*tensors: Tensor) -> list[Tensor]:
    """The tensors in the dtype that autocast asks for on their device; as they are where it is not enabled."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    return [x.to(torch.get_autocast_dtype(device)) for x in tensors]
