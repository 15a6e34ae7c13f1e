"""A GPT made of parts, walked by a LayerPlan: one forward for training, scoring, calibration and test-time training."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pgolf.model.attention import CausalSelfAttention
from pgolf.model.context import HEAD_SLOT, PLAIN, Context
from pgolf.model.norm import RMSNorm, rms_norm
from pgolf.model.plan import Depth, LayerPlan
from pgolf.model.roles import Part, constant, initialise, normal

AttentionFactory = Callable[[int, float], CausalSelfAttention]
MlpFactory = Callable[[int], nn.Module]


class Block(Part):
    """Attention and MLP on a residual stream that is first mixed with the embedding x0.

    u = m0 x + m1 x0; v = u + attn_scale * attention(norm(u) s); out = v + mlp_scale * mlp(norm(v) s), with
    s = 1 / sqrt(layer + 1) when layer_scale is on (the physical index, also in repeated visits).
    """

    attn_scale: nn.Parameter
    mlp_scale: nn.Parameter
    resid_mix: nn.Parameter

    def __init__(
        self, dim: int, layer: int, qk_gain: float, attention: AttentionFactory, mlp: MlpFactory, layer_scale: bool
    ) -> None:
        super().__init__()
        self.norm_scale = (layer + 1) ** -0.5 if layer_scale else 1.0
        self.attn = attention(dim, qk_gain)
        self.mlp = mlp(dim)
        self.declare("attn_scale", (dim,), "scalar", constant(1.0))
        self.declare("mlp_scale", (dim,), "scalar", constant(1.0))
        self.declare("resid_mix", (2, dim), "scalar", _first_row_ones)

    def site_outputs(self) -> dict[str, int]:
        """Width of the output at each adapter site of the block."""
        dim = self.resid_mix.shape[1]
        kv_dim = self.attn.num_kv_heads * self.attn.head_dim
        return {"q": dim, "k": kv_dim, "v": kv_dim, "o": dim, "mlp": dim}

    def forward(self, x: Tensor, x0: Tensor, slot: int, context: Context) -> Tensor:
        """x, x0 [B, T, dim] -> [B, T, dim]."""
        mix = self.resid_mix.to(x.dtype)
        u = torch.addcmul(mix[0] * x, mix[1], x0)
        v = torch.addcmul(u, self.attn_scale.to(x.dtype), self.attn(rms_norm(u, self.norm_scale), slot, context))
        return torch.addcmul(v, self.mlp_scale.to(x.dtype), self.mlp(rms_norm(v, self.norm_scale), slot, context))


def _first_row_ones(tensor: Tensor, generator: torch.Generator) -> None:
    tensor[0].fill_(1.0)
    tensor[1].fill_(0.0)


class Embedding(Part):
    """Token embedding table, weight [vocab_size, dim]."""

    weight: nn.Parameter

    def __init__(self, vocab_size: int, dim: int, std: float) -> None:
        super().__init__()
        self.declare("weight", (vocab_size, dim), "embedding", normal(std))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens int64 [B, T] -> [B, T, dim]."""
        return nn.functional.embedding(tokens, self.weight)


class Head(nn.Module):
    """Logits from hidden states, capped smoothly: softcap * tanh(z / softcap), computed in fp32."""

    def __init__(self, softcap: float) -> None:
        super().__init__()
        if softcap <= 0:
            raise ValueError(f"softcap={softcap} must be positive")
        self.softcap = softcap

    def forward(self, hidden: Tensor, weight: Tensor, context: Context) -> Tensor:
        """hidden [B, T, dim], weight [vocab_size, dim] -> fp32 logits [B, T, vocab_size]."""
        z = context.adapt(HEAD_SLOT, "head", hidden, nn.functional.linear(hidden, weight.to(hidden.dtype)))
        return self.softcap * torch.tanh(z.float() / self.softcap)


class GPT(Part):
    """The frontier family of the published records, from the naive baseline on, as parts.

    vocab_size and seed come at run time; every parameter's initial value depends only on (seed, its name). dim: width
    of the residual stream. qk_gain: initial gain of normed queries. softcap: cap on logits. embedding_std: initial
    standard deviation of the (tied) token embedding. layer_scale: 1/sqrt(layer+1) after both norms. skip_gates:
    learned sigmoid gate on each U-Net skip. depth, attention, mlp: the parts.
    """

    skip_weights: nn.Parameter
    skip_gates: nn.Parameter

    def __init__(
        self,
        vocab_size: int,
        seed: int,
        *,
        dim: int,
        qk_gain: float,
        softcap: float,
        embedding_std: float,
        layer_scale: bool,
        skip_gates: bool,
        depth: Depth,
        attention: AttentionFactory,
        mlp: MlpFactory,
    ) -> None:
        super().__init__()
        self.vocab_size, self.dim = vocab_size, dim
        self.plans: dict[str, LayerPlan] = depth.plans
        self.plan_name = "plain"
        self.tok_emb = Embedding(vocab_size, dim, embedding_std)
        self.blocks: list[Block] = nn.ModuleList(  # type: ignore[assignment]
            Block(dim, layer, qk_gain, attention, mlp, layer_scale) for layer in range(depth.num_layers)
        )
        num_skips = max(plan.num_skips for plan in self.plans.values())
        if num_skips:
            self.declare("skip_weights", (num_skips, dim), "scalar", constant(1.0))
        self.gated_skips = bool(num_skips) and skip_gates
        if self.gated_skips:
            self.declare("skip_gates", (num_skips, dim), "scalar", constant(0.0))
        self.final_norm = RMSNorm()
        self.head = Head(softcap)
        initialise(self, seed)

    @property
    def plan(self) -> LayerPlan:
        """The plan that forward walks now."""
        return self.plans[self.plan_name]

    def set_plan(self, name: str) -> None:
        """Walk the plan `name` ("plain" or "looped") from now on."""
        if name not in self.plans:
            raise ValueError(f"no plan {name!r}: choose one of {', '.join(self.plans)}")
        self.plan_name = name

    def forward(self, tokens: Tensor, context: Context = PLAIN) -> Tensor:
        """tokens int64 [B, T] -> normed hidden states [B, T, dim]; `logits` turns them into scores."""
        x = x0 = rms_norm(self.tok_emb(tokens))
        kept: list[Tensor] = []
        for step in self.plan.passes:
            if step.pop is not None:
                x = self._mix_skip(x, kept.pop(), step.pop)
            x = self.blocks[step.block](x, x0, step.slot, context)
            if step.push:
                kept.append(x)
        return self.final_norm(x)

    def _mix_skip(self, x: Tensor, skip: Tensor, row: int) -> Tensor:
        skip = self.skip_weights[row].to(x.dtype) * skip
        if not self.gated_skips:
            return x + skip
        return skip + torch.sigmoid(self.skip_gates[row]).to(x.dtype) * (x - skip)

    def logits(self, hidden: Tensor, context: Context = PLAIN) -> Tensor:
        """hidden [B, T, dim] -> capped fp32 logits [B, T, vocab_size]."""
        return self.head(hidden, self.tok_emb.weight, context)

    def adapter_sites(self) -> list[tuple[int, str, int, int]]:
        """(slot, site, in_features, out_features) of every place in the current plan where an adapter may attach."""
        found = []
        for step in self.plan.passes:
            outputs = self.blocks[step.block].site_outputs()
            found += [(step.slot, site, self.dim, out_features) for site, out_features in outputs.items()]
        return [*found, (HEAD_SLOT, "head", self.dim, self.vocab_size)]

    def calibration_sites(self) -> dict[str, nn.Module]:
        """For each weight matrix the module whose first input [..., in_features] it multiplies."""
        sites: dict[str, nn.Module] = {}
        for name, module in self.named_modules():
            weight = getattr(module, "weight", None)
            if weight is not None and isinstance(module, Part) and module.roles.get("weight") == "matrix":
                sites[f"{name}.weight"] = module
        sites["tok_emb.weight"] = self.head
        return sites
