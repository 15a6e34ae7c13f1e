"""The first weights of the naive baseline's scripts, in the order in which these draw them, and the hash and the batch
by which PR 2059 compares two models.

Scripts draw everything from one generator, so a part that is added moves all that is drawn after it. Models here give
every parameter a stream of its own; this is for comparing with published numbers alone.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class NaiveSizes:
    """Sizes and constants of a model of the family of 2026-03-17. mlp_width: hidden units."""

    vocab_size: int
    num_layers: int
    dim: int
    num_heads: int
    num_kv_heads: int
    mlp_width: int
    embedding_std: float = 0.005
    qk_gain: float = 1.5


def naive_state(sizes: NaiveSizes, seed: int) -> dict[str, Tensor]:
    """The fp32 state dict of a script's tied model after `torch.manual_seed(seed)`, names as the models here have them.

    Order of the draws (2026-03-17): the embedding from N(0, 1); for each block the matrices q, k, v, output, up, down
    from torch's default for linear layers, U(-1/sqrt(in), 1/sqrt(in)); the embedding again, from N(0, std^2). Then
    output and down projections are zeroed.
    """
    generator, dim = torch.Generator().manual_seed(seed), sizes.dim
    kv_dim = dim // sizes.num_heads * sizes.num_kv_heads
    torch.empty(sizes.vocab_size, dim).normal_(generator=generator)
    state = {"skip_weights": torch.ones(sizes.num_layers // 2, dim)}
    for layer in range(sizes.num_layers):
        block = f"blocks.{layer}"
        state[f"{block}.attn_scale"] = torch.ones(dim)
        state[f"{block}.mlp_scale"] = torch.ones(dim)
        state[f"{block}.resid_mix"] = torch.stack([torch.ones(dim), torch.zeros(dim)])
        state[f"{block}.attn.q_gain"] = torch.full((sizes.num_heads,), sizes.qk_gain)
        matrices = {
            "attn.c_q": (dim, dim),
            "attn.c_k": (kv_dim, dim),
            "attn.c_v": (kv_dim, dim),
            "attn.proj": (dim, dim),
            "mlp.fc": (sizes.mlp_width, dim),
            "mlp.proj": (dim, sizes.mlp_width),
        }
        for name, shape in matrices.items():
            matrix = nn.init.kaiming_uniform_(torch.empty(shape), a=math.sqrt(5.0), generator=generator)
            state[f"{block}.{name}.weight"] = torch.zeros_like(matrix) if name.endswith("proj") else matrix
    state["tok_emb.weight"] = torch.empty(sizes.vocab_size, dim).normal_(0.0, sizes.embedding_std, generator=generator)
    return state


def published_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 as PR 2059 takes it: for every name in order, the name, the shape and the dtype as Python shows them, and
    the bytes, one behind the other."""
    total = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        total.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        total.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def random_batch(vocab_size: int, rows: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random inputs and targets, int64 [rows, length] each, drawn in this order after `torch.manual_seed(seed)`."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(vocab_size, (rows, length), generator=generator)
    return inputs, torch.randint(vocab_size, (rows, length), generator=generator)
