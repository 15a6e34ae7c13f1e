"""Whether two configurations are the same model, and what their training and scoring come to."""

import argparse
import hashlib
from typing import TYPE_CHECKING, Any

from pgolf.app import build
from pgolf.app.console import Screen
from pgolf.app.verbs.composing import compose
from pgolf.app.verification.events import story

if TYPE_CHECKING:
    import torch

BATCH = (2, 64)  # rows, tokens


def compare(first: list[str], second: list[str], options: argparse.Namespace) -> int:
    """Print what differs between two sets of overrides; 0 when they are the same model and all is well with both."""
    screen, found, wrong = Screen(), [], 0
    for overrides in (first, second):
        config = compose(overrides, options).config
        recipe = build.recipe(config)
        model = recipe.model(recipe.data.vocab_size, recipe.seed)
        digest = state_hash(model)
        number = sum(value.numel() for value in model.state_dict().values())
        loss = random_loss(model, recipe.data.vocab_size).item()
        screen.say(f"{' '.join(overrides) or 'defaults'}: {number:,} values, state {digest[:16]}, loss {loss:.9f}")
        told = story(recipe)
        wrong += len(told.problems())
        for line in told.lines():
            screen.say(f"    {line}")
        found.append((digest, loss))
    (state_a, loss_a), (state_b, loss_b) = found
    difference = abs(loss_a - loss_b)
    same = state_a == state_b and difference == 0.0
    screen.say(
        f"state dicts {'equal' if state_a == state_b else 'differ'}, "
        f"loss difference {difference:g}: "
        f"{'the same model' if same else 'NOT the same model'}"
    )
    return 0 if same and not wrong else 1


def state_hash(model: Any) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of a state dict."""
    import torch

    total = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def random_loss(model: Any, vocab_size: int) -> "torch.Tensor":
    """Mean cross-entropy on a fixed random batch, with every parameter moved off its initial value.

    Output projections start at zero, and would hide a difference in what feeds them. The plan is
    that of the end of training.
    """
    import torch

    from pgolf.kernels.attend import select
    from pgolf.model.context import Context
    from pgolf.model.roles import stream

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=stream(0, f"verify/{name}")))
    model.set_plan("looped" if "looped" in model.plans else next(iter(model.plans)))
    tokens = torch.randint(vocab_size, (BATCH[0], BATCH[1] + 1), generator=stream(0, "verify/tokens"))
    context = Context(select("sdpa", torch.device("cpu"))[1])
    logits = model.logits(model(tokens[:, :-1], context), context)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
