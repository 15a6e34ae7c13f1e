"""In which precision a forward pass computes."""

import torch


def autocast(device: torch.device) -> torch.autocast:
    """bf16 on CUDA (published), fp32 elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
