"""Continuations of a prompt, so that people see what a model learned."""

import torch

from pgolf.model.context import Context
from pgolf.model.gpt import GPT


@torch.no_grad()
def continuation(
    model: GPT,
    tokens: list[int],
    length: int,
    temperature: float,
    generator: torch.Generator,
    context: Context,
    window: int,
) -> list[int]:
    """`length` tokens drawn after `tokens`, one forward each over the last `window` tokens. Control tokens (ids below
    4) are never drawn."""
    device = model.tok_emb.weight.device
    row = list(tokens)
    for _ in range(length):
        visible = torch.tensor([row[-window:]], device=device)
        with model.precision.autocast(device):
            logits = model.logits(model(visible, context)[:, -1:], context)[0, 0].cpu()
        logits[:4] = -float("inf")
        row.append(int(torch.multinomial(torch.softmax(logits / temperature, dim=-1), 1, generator=generator)))
    return row[len(tokens) :]
