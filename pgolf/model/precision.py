"""In which precision parameters are kept and a forward pass computes."""

from typing import Literal

import torch
from torch import Tensor, nn

from pgolf.model.roles import ROLES, parameter_roles

Dtype = Literal["float32", "bfloat16"]


class Precision:
    """A rule for a model's numbers.

    parameters: dtype by role, float32 where a role is not named. autocast: dtype of matrix products on a GPU; None:
    that of the activations.

    Autocast is for GPUs alone: on a CPU the parameters keep their dtype and everything is computed in float32. Raises
    ValueError when `parameters` names a role that does not exist.
    """

    def __init__(self, *, parameters: dict[str, Dtype], autocast: Dtype | None) -> None:
        if unknown := sorted(set(parameters) - set(ROLES)):
            raise ValueError(f"precision.parameters has no role {unknown[0]!r}: choose among {', '.join(ROLES)}")
        self.parameters = parameters
        self.autocast_dtype = torch.bfloat16 if autocast == "bfloat16" else None

    def apply(self, model: nn.Module) -> None:
        """Cast the parameters of a model."""
        for name, role in parameter_roles(model).items():
            parameter = model.get_parameter(name)
            parameter.data = parameter.data.to(getattr(torch, self.parameters.get(role, "float32")))

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context that forward passes on `device` run under."""
        enabled = device.type == "cuda" and self.autocast_dtype is not None
        return torch.autocast(device.type, self.autocast_dtype or torch.bfloat16, enabled=enabled)

    def activations(self, device: torch.device) -> torch.dtype:
        """What matrix products, and so attention, compute in on `device`."""
        return self.autocast_dtype or torch.float32 if device.type == "cuda" else torch.float32

    def stream(self, embedded: Tensor) -> Tensor:
        """The residual stream that an embedding begins: of its dtype under autocast, else of float32."""
        return embedded if embedded.is_cuda and self.autocast_dtype is not None else embedded.float()
