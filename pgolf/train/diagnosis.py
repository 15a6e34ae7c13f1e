"""Which tensor stopped being a number first."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Share = TypeVar("Share")


def first_not_finite(model: nn.Module, batches: Sequence[Share], loss: Callable[[Share], Tensor]) -> str | None:
    """Walk the step again that went wrong, and name the first tensor with a NaN or an infinity; None when all are
    finite.

    In this order: parameters (in the model's order), outputs of modules (in the order in which they are computed), the
    loss, gradients of parameters (in the order in which they arrive). Leaves the model without gradients.
    """
    for name, parameter in model.named_parameters():
        if not _finite(parameter):
            return f"the parameter {name} (it was so before this step)"
    found: list[str] = []
    hooks = [*_output_hooks(model, found), *_gradient_hooks(model, found)]
    try:
        for number, batch in enumerate(batches, 1):
            model.zero_grad(set_to_none=True)
            value = loss(batch)
            if not found and not _finite(value):
                found.append("the loss")
            if not found:
                value.backward()
            if found:
                return f"{found[0]}, in micro-batch {number} of {len(batches)}"
    finally:
        for hook in hooks:
            hook.remove()
        model.zero_grad(set_to_none=True)
    return None


def _finite(value: Any) -> bool:
    return not isinstance(value, Tensor) or bool(torch.isfinite(value.detach()).all())


def _output_hooks(model: nn.Module, found: list[str]) -> list[Any]:
    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and not all(_finite(one) for one in (output if isinstance(output, tuple) else (output,))):
                found.append(f"the output of {name or 'the model'}")

        return hook

    return [module.register_forward_hook(hook_of(name)) for name, module in model.named_modules()]


def _gradient_hooks(model: nn.Module, found: list[str]) -> list[Any]:
    def hook_of(name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            if not found and parameter.grad is not None and not _finite(parameter.grad):
                found.append(f"the gradient of {name}")

        return hook

    return [
        parameter.register_post_accumulate_grad_hook(hook_of(name))
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]


def broken_weights(model: nn.Module) -> str | None:
    """The first parameter that holds a NaN or an infinity, or numbers so large that their L2 norm is none; None when
    all are sound."""
    named = {name: parameter.detach() for name, parameter in model.named_parameters()}
    norms = torch.stack([norm.float() for norm in torch._foreach_norm(list(named.values()))])
    sound = torch.isfinite(norms).tolist()
    return next((name for name, well in zip(named, sound, strict=True) if not well), None)
