"""The forward pass of the published scripts written out once more, in the plainest words: what the parts are judged by
where no reference case was recorded.

Nothing here is shared with the package. `config` is that of a reference case, `weights` have their published names.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Config = Mapping[str, Any]
LORA = ("q_loras", "k_loras", "v_loras", "o_loras", "mlp_loras")


def halves(config: Config, looped: bool) -> tuple[list[int], list[int]]:
    """The blocks that are walked before and after the middle."""
    walk = list(range(config["num_layers"]))
    if looped and config.get("num_loops", 0):
        start, end = config["loop_start"], config["loop_end"]
        walk = walk[:start] + list(range(start, end + 1)) * (config["num_loops"] + 1) + walk[end + 1 :]
    return walk[: len(walk) // 2], walk[len(walk) // 2 :]


def num_skips(config: Config) -> int:
    """Rows of the skip weights."""
    return min(map(len, halves(config, looped=True)))


def random_weights(config: Config, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights for every parameter of a configuration, none at its published initial value."""
    dim, layers, heads = config["model_dim"], config["num_layers"], config["num_heads"]
    kv_dim, hidden = dim // heads * config["num_kv_heads"], int(config["mlp_mult"] * dim)
    width = config.get("gate_window", 12)

    def draw(*shape: int, std: float | None = None, mean: float = 0.0) -> Tensor:
        spread = shape[-1] ** -0.5 if std is None else std
        return mean + spread * torch.randn(shape, generator=generator)

    found = {"tok_emb.weight": draw(config["vocab_size"], dim, std=0.5)}
    found["skip_weights"] = draw(num_skips(config), dim, std=0.3, mean=1.0)
    if not config["tie_embeddings"]:
        found["lm_head.weight"] = draw(config["vocab_size"], dim, std=0.3)
    if config.get("skip_gates_enabled"):
        found["skip_gates"] = draw(num_skips(config), dim, std=0.5)
    if "parallel_final_lane" in config:
        found["parallel_post_lambdas"] = draw(layers, 2, 2, std=0.3, mean=1.0)
        found["parallel_resid_lambdas"] = draw(layers, 2, std=0.2, mean=1.1)
    if config.get("smear_gate_enabled"):
        found |= {"smear_gate.weight": draw(1, width, std=1.0), "smear_lambda": draw(1, std=0.1, mean=0.7)}
    if config.get("asym_logit_rescale"):
        found |= {"softcap_pos": torch.tensor(7.3), "softcap_neg": torch.tensor(4.1)}
    for layer in range(layers):
        block, attention = f"blocks.{layer}.", f"blocks.{layer}.attn."
        found |= {attention + "c_q.weight": draw(dim, dim), attention + "proj.weight": draw(dim, dim)}
        found |= {attention + name: draw(kv_dim, dim) for name in ("c_k.weight", "c_v.weight")}
        found |= {block + "mlp.fc.weight": draw(hidden, dim), block + "mlp.proj.weight": draw(dim, hidden)}
        found |= {block + name: draw(dim, std=0.3, mean=1.0) for name in ("attn_scale", "mlp_scale")}
        found[block + "resid_mix"] = draw(2, dim, std=0.3, mean=0.5)
        found[attention + "q_gain"] = draw(heads, std=0.5, mean=2.0)
        if config.get("gated_xsa_enabled") and layer >= layers - config["xsa_last_n"]:
            found[attention + "xsa_alpha"] = draw(heads, std=1.0)
        if config.get("attn_out_gate_enabled"):
            found[attention + "attn_gate_proj.weight"] = draw(heads, width, std=1.0)
        if config.get("gated_attn_enabled"):
            found[attention + "attn_gate_w"] = draw(heads, dim)
        if config.get("sparse_attn_gate_enabled"):
            found[attention + "attn_gate_w"] = draw(heads, width, std=1.0)
    return found


def random_adapters(
    config: Config, looped: bool, rows: int, rank: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Adapters of `rows` documents for every virtual layer and the head."""
    dim, kv_dim = config["model_dim"], config["model_dim"] // config["num_heads"] * config["num_kv_heads"]
    outputs = dict(zip(LORA, (dim, kv_dim, kv_dim, dim, dim), strict=True))
    slots = sum(map(len, halves(config, looped)))
    places = {f"{kind}.{slot}": out for kind, out in outputs.items() for slot in range(slots)}
    found = {}
    for place, out in {**places, "lm_head_lora": config["vocab_size"]}.items():
        found[f"{place}.A"] = dim**-0.5 * torch.randn(rows, rank, dim, generator=generator)
        found[f"{place}.B"] = 0.2 * torch.randn(rows, out, rank, generator=generator)
    return found


def norm(x: Tensor) -> Tensor:
    """RMSNorm over the last dimension."""
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps)


class WrittenOut:
    """One model. smear_stops: whether the smear gate stops at token 1."""

    def __init__(self, config: Config, weights: Mapping[str, Tensor], smear_stops: bool) -> None:
        self.config, self.weights, self.smear_stops = config, weights, smear_stops
        self.adapters: Mapping[str, Tensor] = {}
        self.adapter_scale = 1.0

    def logits(self, tokens: Tensor, looped: bool, documents: Tensor | None, capped: str = "score") -> Tensor:
        """tokens [B, T], documents: the number of each of T tokens' document, or None -> logits [B, T, V]. capped:
        "score", or "train" for the plain cap that training keeps."""
        config, weights = self.config, self.weights
        x = x0 = norm(self._smeared(weights["tok_emb.weight"][tokens], tokens))
        first, second = halves(config, looped)
        kept, slot = [], 0
        for layer in first:
            x = self._block(layer, x, x0, slot, documents)
            kept.append(x)
            slot += 1
        lanes: list[Tensor] = []
        start = config.get("parallel_start_layer", 0) if "parallel_post_lambdas" in weights else 0
        for row, layer in enumerate(second):
            skip = kept.pop() if kept and row < num_skips(config) else None
            if 0 < start <= layer:
                lanes = lanes or [x, x]
                if skip is not None:
                    lanes[0] = self._with_skip(lanes[0], skip, row)
                lanes = self._two_lanes(layer, lanes, x0, slot, documents)
            else:
                x = x if skip is None else self._with_skip(x, skip, row)
                x = self._block(layer, x, x0, slot, documents)
            slot += 1
        if lanes:
            x = {"mean": (lanes[0] + lanes[1]) / 2, "attn": lanes[0], "mlp": lanes[1]}[config["parallel_final_lane"]]
        x = norm(x)
        head = weights["tok_emb.weight"] if config["tie_embeddings"] else weights["lm_head.weight"]
        z = x @ head.T + self._adapted("lm_head_lora", x)
        above = below = torch.tensor(config["logit_softcap"])
        if config.get("asym_logit_rescale") and capped == "score":
            above, below = weights["softcap_pos"], weights["softcap_neg"]
        return torch.where(z > 0, above * torch.tanh(z / above), below * torch.tanh(z / below))

    def _smeared(self, embedded: Tensor, tokens: Tensor) -> Tensor:
        if not self.config.get("smear_gate_enabled"):
            return embedded
        width, columns = self.config.get("gate_window", 12), [embedded[:, 0]]
        for t in range(1, embedded.shape[1]):
            gate = torch.sigmoid(embedded[:, t, :width] @ self.weights["smear_gate.weight"].T)
            gate = gate * self.weights["smear_lambda"]
            if self.smear_stops:
                gate = torch.where(tokens[:, t, None] == 1, torch.zeros_like(gate), gate)
            columns.append(embedded[:, t] + gate * embedded[:, t - 1])
        return torch.stack(columns, dim=1)

    def _adapted(self, place: str, x: Tensor) -> Tensor | float:
        if f"{place}.A" not in self.adapters:
            return 0.0
        low = torch.einsum("bti,bri->btr", x, self.adapters[f"{place}.A"])
        return self.adapter_scale * torch.einsum("btr,bor->bto", low, self.adapters[f"{place}.B"])

    def _scaled_norm(self, layer: int, x: Tensor) -> Tensor:
        return norm(x) / math.sqrt(layer + 1) if self.config.get("ln_scale") else norm(x)

    def _with_skip(self, x: Tensor, skip: Tensor, row: int) -> Tensor:
        skip = self.weights["skip_weights"][row] * skip
        if not self.config.get("skip_gates_enabled"):
            return x + skip
        gate = torch.sigmoid(self.weights["skip_gates"][row])
        return gate * x + (1 - gate) * skip

    def _mixed(self, layer: int, x: Tensor, x0: Tensor) -> Tensor:
        mix = self.weights[f"blocks.{layer}.resid_mix"]
        return mix[0] * x + mix[1] * x0

    def _block(self, layer: int, x: Tensor, x0: Tensor, slot: int, documents: Tensor | None) -> Tensor:
        attn_scale, mlp_scale = (self.weights[f"blocks.{layer}.{name}"] for name in ("attn_scale", "mlp_scale"))
        u = self._mixed(layer, x, x0)
        v = u + attn_scale * self._attention(layer, self._scaled_norm(layer, u), slot, documents)
        parallel_from = self.config.get("parallel_residual_start", -1)
        read = u if 0 <= parallel_from <= layer else v
        return v + mlp_scale * self._mlp(layer, self._scaled_norm(layer, read), slot)

    def _two_lanes(
        self, layer: int, lanes: list[Tensor], x0: Tensor, slot: int, documents: Tensor | None
    ) -> list[Tensor]:
        attn_scale, mlp_scale = (self.weights[f"blocks.{layer}.{name}"] for name in ("attn_scale", "mlp_scale"))
        u = self._mixed(layer, lanes[0], x0)
        a = attn_scale * self._attention(layer, self._scaled_norm(layer, u), slot, documents)
        b = mlp_scale * self._mlp(layer, self._scaled_norm(layer, lanes[1]), slot)
        post = self.weights["parallel_post_lambdas"][layer]
        resid = self.weights["parallel_resid_lambdas"][layer]
        return [resid[lane] * lanes[lane] + post[0, lane] * a + post[1, lane] * b for lane in (0, 1)]

    def _attention(self, layer: int, n: Tensor, slot: int, documents: Tensor | None) -> Tensor:
        config, name = self.config, f"blocks.{layer}.attn."
        heads, groups, (rows, tokens, dim) = config["num_heads"], config["num_kv_heads"], n.shape
        q_flat, k, v = (
            n @ self.weights[f"{name}c_{part}.weight"].T + self._adapted(f"{part}_loras.{slot}", n) for part in "qkv"
        )
        q, k, v = (
            q_flat.view(rows, tokens, heads, -1),
            k.view(rows, tokens, groups, -1),
            v.view(rows, tokens, groups, -1),
        )
        q, k = self._rotated(norm(q)), self._rotated(norm(k))
        q = q * self.weights[name + "q_gain"][:, None]
        k, v = k.repeat_interleave(heads // groups, dim=2), v.repeat_interleave(heads // groups, dim=2)
        hidden = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
        if documents is not None:
            hidden |= documents[:, None] != documents[None, :]
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(dim // heads)
        y = torch.einsum("bhij,bjhd->bihd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)
        if layer >= config["num_layers"] - config.get("xsa_last_n", 0):
            own = F.normalize(v, dim=-1)
            share = (y * own).sum(-1, keepdim=True)
            if config.get("gated_xsa_enabled"):
                share = share * torch.tanh(self.weights[name + "xsa_alpha"])[:, None]
            y = y - share * own
        y = y * self._gate(name, n, q_flat)
        return y.reshape(rows, tokens, dim) @ self.weights[name + "proj.weight"].T + self._adapted(f"o_loras.{slot}", n)

    def _gate(self, name: str, n: Tensor, q: Tensor) -> Tensor | float:
        config, width = self.config, self.config.get("gate_window", 12)
        if config.get("attn_out_gate_enabled"):
            z = (q if config["attn_out_gate_src"] == "q" else n)[..., :width]
            return 2 * torch.sigmoid(z @ self.weights[name + "attn_gate_proj.weight"].T)[..., None]
        if config.get("gated_attn_enabled"):
            return torch.sigmoid(n @ self.weights[name + "attn_gate_w"].T)[..., None]
        if config.get("sparse_attn_gate_enabled"):
            score = n[..., :width] @ self.weights[name + "attn_gate_w"].T
            return torch.sigmoid(config["sparse_attn_gate_scale"] * score)[..., None]
        return 1.0

    def _rotated(self, x: Tensor) -> Tensor:
        config, tokens = self.config, x.shape[1]
        dims, base = config.get("rope_dims", 0) or x.shape[-1], config["rope_base"]
        if config.get("rope_yarn") and tokens > config["train_seq_len"]:
            base = base * (tokens / config["train_seq_len"]) ** (dims / (dims - 2))
        rotated = x.clone()
        for j in range(dims // 2):
            angle = torch.arange(tokens, dtype=torch.float32) * base ** (-2 * j / dims)
            cos, sin = angle.cos()[:, None], angle.sin()[:, None]
            first, second = x[..., j], x[..., j + dims // 2]
            rotated[..., j], rotated[..., j + dims // 2] = first * cos + second * sin, second * cos - first * sin
        return rotated

    def _mlp(self, layer: int, n: Tensor, slot: int) -> Tensor:
        h = n @ self.weights[f"blocks.{layer}.mlp.fc.weight"].T
        slope = self.config.get("mlp_leaky_slope", 0.5 if "xsa_last_n" in self.config else 0.0)
        h = torch.where(h > 0, h, slope * h) ** 2
        return h @ self.weights[f"blocks.{layer}.mlp.proj.weight"].T + self._adapted(f"mlp_loras.{slot}", n)
