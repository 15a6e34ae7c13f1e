"""Mamba-2 in the place of attention (Dao and Gu 2024, "Transformers are SSDs", arXiv 2405.21060): a linear recurrence
whose state decays by a number for each head and token, computed in chunks by products of matrices."""

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.kernels.packing import Packing
from pgolf.model.context import Context
from pgolf.model.norm import rms_norm
from pgolf.model.roles import Linear, Part, constant, orthogonal
from pgolf.model.starts import uniform

if TYPE_CHECKING:
    from pgolf.model.gpt import GPT

RATES = (1.0, 16.0)  # -A is drawn uniformly from this range
STEPS = (0.001, 0.1)  # softplus(dt_bias), logarithmically


class Mamba2(Part):
    """h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T, y_t = h_t C_t + D x_t for every head, with h_t [head_dim, state_dim];
    output W_out (g norm(y silu(z))).

    (z, x, B, C, dt) = W_in n; x, B and C then go through a causal convolution over `conv_width` tokens, each channel by
    itself, and SiLU. B and C [state_dim] serve all heads. dt = softplus(dt + dt_bias) and A = -exp(A_log) are a number
    for each head. Neither the state nor the convolution goes from a document of a packed row to the next.

    in_proj.weight [2 inner + 2 state_dim + heads, dim] starts orthogonal, out_proj.weight [dim, inner] at zero;
    conv_weight [inner + 2 state_dim, conv_width], whose last column is the token's own, from U(-1/sqrt(conv_width),
    1/sqrt(conv_width)) and conv_bias at 0; A_log, dt_bias and D [heads] at the logarithm of U(1, 16), so that
    softplus(dt_bias) is 0.001..0.1 (logarithmically uniform), and at 1; the gain g [inner] at 1.

    inner, heads * head_dim: width of x, y and z. chunk: tokens that are multiplied with each other; it changes
    roundings, memory and speed.
    """

    A_log: nn.Parameter
    D: nn.Parameter
    dt_bias: nn.Parameter
    conv_weight: nn.Parameter
    conv_bias: nn.Parameter
    gain: nn.Parameter

    def __init__(self, dim: int, inner: int, *, state_dim: int, head_dim: int, conv_width: int, chunk: int) -> None:
        super().__init__()
        self.inner, self.state_dim, self.head_dim, self.chunk = inner, state_dim, head_dim, chunk
        self.num_heads = inner // head_dim
        mixed = inner + 2 * state_dim
        self.in_proj = Linear(dim, inner + mixed + self.num_heads, "matrix", orthogonal())
        self.out_proj = Linear(inner, dim, "matrix", constant(0.0))
        self.declare("conv_weight", (mixed, conv_width), "scalar", uniform())
        self.declare("conv_bias", (mixed,), "scalar", constant(0.0))
        self.declare("A_log", (self.num_heads,), "scalar", _log_rates)
        self.declare("dt_bias", (self.num_heads,), "scalar", _steps)
        self.declare("D", (self.num_heads,), "scalar", constant(1.0))
        self.declare("gain", (inner,), "scalar", constant(1.0))

    def forward(self, n: Tensor, context: Context) -> Tensor:
        """n: normed block input [B, T, dim] -> [B, T, dim]."""
        ids = _document_ids(n.shape[1], context.packing, n.device)
        wide = self.in_proj(n)
        z, mixed, dt = wide.split((self.inner, wide.shape[-1] - self.inner - self.num_heads, self.num_heads), dim=-1)
        mixed = F.silu(convolve(mixed, self.conv_weight, self.conv_bias, ids))
        x, b, c = mixed.split((self.inner, self.state_dim, self.state_dim), dim=-1)
        x = x.unflatten(-1, (self.num_heads, self.head_dim))
        dt = F.softplus(dt.float() + self.dt_bias)
        log_decay = -torch.exp(self.A_log) * dt
        y = scan((dt[..., None] * x).to(x.dtype), b, c, log_decay, ids, self.chunk)
        y = torch.addcmul(y, self.D[:, None].to(y.dtype), x.to(y.dtype)).flatten(2).to(z.dtype)
        return self.out_proj(self.gain.to(z.dtype) * rms_norm(y * F.silu(z)))

    def operations(self, sequence_tokens: int) -> float:
        """Floating point operations for a token besides the matrices, mean over a sequence: with the tokens before it
        in its chunk, as in causal attention, what it adds to the state of the chunk, and what it reads of the state
        that enters it."""
        chunk = min(self.chunk, sequence_tokens)
        return (chunk + 1.0) * (self.state_dim + self.inner) + 4.0 * self.inner * self.state_dim


def convolve(x: Tensor, weight: Tensor, bias: Tensor, ids: Tensor) -> Tensor:
    """x [B, T, n], weight [n, k], bias [n], ids int [T] -> y_t = bias + sum_i weight[:, k-1-i] x_{t-i} over the tokens
    t-i of t's document, [B, T, n]."""
    weight, length = weight.to(x.dtype), x.shape[1]
    y = torch.addcmul(bias.to(x.dtype), x, weight[:, -1])
    for back in range(1, min(weight.shape[1], length)):
        same = F.pad(ids[back:] == ids[:-back], (back, 0))
        earlier = F.pad(x[:, :-back], (0, 0, back, 0)) * same[:, None].to(x.dtype)
        y = torch.addcmul(y, earlier, weight[:, -1 - back])
    return y


def scan(x: Tensor, b: Tensor, c: Tensor, log_decay: Tensor, ids: Tensor, chunk: int) -> Tensor:
    """y_t = sum_s (c_t . b_s) exp(log_decay_{s+1} + ... + log_decay_t) x_s over the tokens s <= t of t's document.

    x [B, T, H, P], b and c [B, T, N], log_decay [B, T, H] not positive, in fp32 or longer, ids int [T]: of documents,
    never decreasing -> [B, T, H, P]. Within chunks by products of all pairs of tokens; from chunk to chunk through the
    states [H, P, N] that each of them leaves (section 6 of the paper). Decays are exponentials of differences of sums,
    which are taken within a chunk and, over chunks, in fp64: a row may have a thousand of them.
    """
    length, dtype = x.shape[1], x.dtype
    chunk = min(chunk, length)
    tail = -length % chunk  # tokens that nothing decays at and that add nothing
    x, log_decay = (_cut(one, chunk, tail).transpose(2, 3) for one in (x, log_decay[..., None]))  # [B, n, H, Q, *]
    b, c = (_cut(one, chunk, tail)[:, :, None] for one in (b, c))  # [B, n, 1, Q, N]
    ids = F.pad(ids, (0, tail), value=-1).unflatten(0, (-1, chunk))  # [n, Q]
    total = log_decay[..., 0].cumsum(-1)  # [B, n, H, Q]

    pairs = torch.tril(ids[:, :, None] == ids[:, None, :])[:, None]
    y = ((c @ b.mT) * _decays(total[..., :, None] - total[..., None, :], pairs).to(dtype)) @ x
    if len(ids) > 1:
        last = ids[:, -1]
        kept = _decays(total[..., -1:] - total, (ids == last[:, None])[:, None])
        states = (kept[..., None].to(dtype) * x).mT @ b
        entering = _passed_on(states, total[..., -1], last).to(dtype)
        read = _decays(total, (ids == _before(last)[:, None])[:, None])
        y = y + read[..., None].to(dtype) * (c @ entering.mT)
    return y.transpose(2, 3).flatten(1, 2)[:, :length]


def _passed_on(states: Tensor, totals: Tensor, last: Tensor) -> Tensor:
    """The state that enters each chunk, [B, n, H, P, N], from those that the chunks before leave, of the same shape.
    totals [B, n, H]: sums of the logarithms over chunks; last int [n]: the document at the end of each."""
    with torch.autocast(states.device.type, enabled=False):  # which would round the states
        over = totals.double().cumsum(1).transpose(1, 2)  # [B, H, n]
        same = torch.tril(_before(last)[:, None] == last, -1)
        span = F.pad(over[..., :-1], (1, 0))[..., :, None] - over[..., None, :]
        dtype = torch.promote_types(states.dtype, totals.dtype)
        weights = _decays(span, same).to(dtype)
        passed = weights @ states.to(dtype).transpose(1, 2).flatten(3)
    return passed.unflatten(-1, states.shape[-2:]).transpose(1, 2)


def _decays(logarithms: Tensor, where: Tensor) -> Tensor:
    """Their exponentials, and zero elsewhere; what stands there may be of any size, and has no gradient."""
    return torch.exp(logarithms.masked_fill(~where, -math.inf))


def _before(last: Tensor) -> Tensor:
    """The document at the end of the chunk before; for the first chunk, which no state enters, its own."""
    return torch.cat((last[:1], last[:-1]))


def _cut(x: Tensor, chunk: int, tail: int) -> Tensor:
    """x [B, T, ...] with `tail` zeros behind it, as [B, n, chunk, ...]."""
    return F.pad(x, (*(0, 0) * (x.ndim - 2), 0, tail)).unflatten(1, (-1, chunk))


def _document_ids(length: int, packing: Packing | None, device: torch.device) -> Tensor:
    """int32 [length]: the document of each token of a row."""
    if packing is None:
        return torch.zeros(length, dtype=torch.int32, device=device)
    return packing.document_ids(length)


def _log_rates(tensor: Tensor, generator: torch.Generator) -> None:
    tensor.uniform_(*RATES, generator=generator).log_()


def _steps(tensor: Tensor, generator: torch.Generator) -> None:
    """The b of which softplus(b) = log(1 + e^b) is the step that was drawn."""
    low, high = map(math.log, STEPS)
    tensor.uniform_(low, high, generator=generator).exp_().expm1_().log_()


class StateSpace:
    """`Mamba2` in the place of attention, in some blocks or all: x + attn_scale * mamba2(norm(x)). These blocks have no
    rotary embedding, gates, XSA or value embedding, and of the sites of adapters the MLP alone.

    layers: the blocks; None: all that have attention. state_dim: of each channel. head_dim: channels that decay alike.
    expand: width inside, over that of the model. conv_width: tokens that the convolution reads. chunk: see `Mamba2`.

    Raises ValueError for sizes below 1, layers that are none or that have no attention, a width that heads do not
    divide, and together with vectors by place, which hold the gains of attention.
    """

    def __init__(
        self, *, layers: list[int] | None, state_dim: int, head_dim: int, expand: int, conv_width: int, chunk: int
    ) -> None:
        sizes = {"state_dim": state_dim, "head_dim": head_dim, "expand": expand, "conv_width": conv_width}
        for name, size in {**sizes, "chunk": chunk}.items():
            if size < 1:
                raise ValueError(f"state_space.{name}={size} must be at least 1")
        if layers is not None and (not layers or len(set(layers)) < len(layers)):
            raise ValueError(f"state_space.layers={layers}: name some layers, each once, or null for all")
        self.layers, self.expand, self.head_dim = layers, expand, head_dim
        self.sizes = {"state_dim": state_dim, "head_dim": head_dim, "conv_width": conv_width, "chunk": chunk}

    def fit(self, model: "GPT") -> None:
        """Take attention out of the blocks, and put a Mamba-2 there."""
        inner = self.expand * model.dim
        if inner % self.head_dim:
            raise ValueError(
                f"state_space.head_dim={self.head_dim} does not divide the width inside, state_space.expand times "
                f"model.dim = {inner}"
            )
        if model.vectors is not None:
            raise ValueError(
                "state_space: vectors by place hold gains of attention, which these blocks lack; set model/vectors=none"
            )
        attending = [layer for layer, block in enumerate(model.blocks) if block.attn is not None]
        chosen = attending if self.layers is None else self.layers
        if missing := sorted(set(chosen) - set(range(len(model.blocks)))):
            raise ValueError(f"state_space.layers name {missing[0]}, none of the layers 0..{len(model.blocks) - 1}")
        if bare := sorted(set(chosen) - set(attending)):
            raise ValueError(f"state_space.layers name {bare[0]}, a block without attention whose place could be taken")
        for layer in chosen:
            model.blocks[layer].attn = None
            model.blocks[layer].state_space = Mamba2(model.dim, inner, **self.sizes)
