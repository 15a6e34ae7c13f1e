"""AdamW as the records run it: fused on a GPU, with the moments of a 16-bit embedding in 16 bits or in fp32."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn


class AdamW(torch.optim.AdamW):
    """torch's AdamW; with weight_decay=0 it is Adam.

    moments: `as_parameter` keeps them in the parameter's dtype (published: bf16 for the bf16 embedding); `fp32` keeps
    them, and does the arithmetic of a step, in fp32, so that only the weight is rounded.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        moments: Literal["as_parameter", "fp32"] = "as_parameter",
    ) -> None:
        given: list[Any] = list(params)
        fused = all(parameter.is_cuda for one in given for parameter in _parameters(one))
        self.wide = moments == "fp32"
        super().__init__(given, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused or None)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        narrow = [p for group in self.param_groups for p in group["params"] if self.wide and p.dtype != torch.float32]
        kept = [(parameter, parameter.data, parameter.grad) for parameter in narrow if parameter.grad is not None]
        for parameter, data, gradient in kept:
            parameter.grad = None
            parameter.data, parameter.grad = data.float(), gradient.float()
        super().step()
        for parameter, data, gradient in kept:
            data.copy_(parameter.data)
            parameter.grad = None
            parameter.data, parameter.grad = data, gradient

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave; fp32 moments stay fp32, which torch would round to the parameter's dtype."""
        super().load_state_dict(state_dict)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for position, saved in state_dict["state"].items() if self.wide else ():
            parameter = parameters[position]
            for name in ("exp_avg", "exp_avg_sq"):
                self.state[parameter][name] = saved[name].to(parameter.device, torch.float32, copy=True)


def _parameters(one: Any) -> list[nn.Parameter]:
    return list(one["params"]) if isinstance(one, dict) else [one]
