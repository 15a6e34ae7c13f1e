"""A GPT made of parts, walked by a LayerPlan: one forward for training, scoring, calibration and test-time training."""

from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor, nn

from pgolf.model.attention import CausalSelfAttention
from pgolf.model.bigram import BigramHash
from pgolf.model.block import AttentionFactory, Block, MixInit, MlpFactory, RepeatFactory, WithoutAttention
from pgolf.model.context import HEAD_SLOT, LAST, PLAIN, Context
from pgolf.model.control import controlled
from pgolf.model.embedding import Embedding, EmbeddingInit, FactoredEmbedding
from pgolf.model.equilibrium import Equilibrium
from pgolf.model.fitting import Fittings, fit_all
from pgolf.model.head import FactoredHead, TiedHead, UntiedHead
from pgolf.model.lanes import Wiring
from pgolf.model.mup import WidthScaling, scale_initial_values
from pgolf.model.norm import RMSNorm, rms_norm
from pgolf.model.phinta import PhiNTA
from pgolf.model.plan import Depth, LayerPlan, Pass
from pgolf.model.precision import Precision
from pgolf.model.recurrence import Recurrence
from pgolf.model.roles import Part, constant, initialise
from pgolf.model.smear import ConvexSmear, SmearGate
from pgolf.model.values import ValueEmbedding
from pgolf.model.vectors import VectorSet, VirtualVectors


class GPT(Part):
    """The families of the published records, from the naive baseline to the frontier, as parts.

    vocab_size and seed come at run time; every parameter's initial value depends only on (seed, its name). dim: width
    of the residual stream. qk_gain: initial gain of normed queries, one for all layers or one for each. embedding_std,
    embedding_init: see `Embedding`. layer_scale, mix_init: see `Block`. skip_gates: learned sigmoid gate on each U-Net
    skip. depth, attention, mlp: the parts that every model has. smear: optional gate on the embedding. lanes: optional
    wiring of late layers. head: made as head(vocab_size, dim). softcap: optional cap on the logits,
    made as softcap(vocab_size). precision: dtypes; None keeps parameters in float32, with bf16 autocast on a GPU.
    vectors: gains, scales and mixes by virtual layer. repeat_mlp: MLPs of repeated visits. without_attention: blocks
    that are an MLP alone. mup: optional scaling of initial values and logits with the width; RoleOptimizers has to be
    given the same. fittings: parts that find their places in the finished model, see `Fittings`.

    Raises ValueError when dim is below 1, embedding_std negative, qk_gain a list of another length than the layers, or
    when no block would have attention, or one that does not exist none; and for an MLP of repeated visits that no plan
    makes.
    """

    skip_weights: nn.Parameter
    skip_gates: nn.Parameter

    def __init__(
        self,
        vocab_size: int,
        seed: int,
        *,
        dim: int,
        qk_gain: float | list[float],
        embedding_std: float,
        layer_scale: bool,
        skip_gates: bool,
        depth: Depth,
        attention: AttentionFactory,
        mlp: MlpFactory,
        softcap: Callable[[int], nn.Module] | None,
        smear: Callable[[int], SmearGate | ConvexSmear] | None = None,
        lanes: Callable[[int], Wiring] | None = None,
        head: Callable[[int, int], TiedHead | UntiedHead] = TiedHead,
        precision: Precision | None = None,
        mix_init: MixInit = "stream",
        embedding_init: EmbeddingInit = "normal",
        mup: WidthScaling | None = None,
        vectors: Callable[[int, int, float, int, int], VirtualVectors] | None = None,
        repeat_mlp: RepeatFactory | None = None,
        without_attention: WithoutAttention | None = None,
        **fittings: Unpack[Fittings],
    ) -> None:
        super().__init__()
        if dim < 1 or embedding_std < 0:
            raise ValueError(f"dim={dim} must be at least 1 and embedding_std={embedding_std} not negative")
        self.vocab_size, self.dim = vocab_size, dim
        self.tok_emb: Embedding | FactoredEmbedding = Embedding(vocab_size, dim, embedding_std, embedding_init)
        self.smear = smear(dim) if smear is not None else None
        layers = depth.num_layers
        gains = qk_gain if isinstance(qk_gain, list) else [qk_gain] * layers
        if len(gains) != layers:
            raise ValueError(f"qk_gain={gains} has {len(gains)} values for {layers} layers: give one, or one for each")
        self.plans: dict[str, LayerPlan] = depth.plans
        bare = set(without_attention.layers) if without_attention is not None else set()
        if not bare < set(range(layers)):
            raise ValueError(
                f"without_attention.layers={sorted(bare)} must be some of the layers 0..{layers - 1}, not all"
            )
        repeats = self._repeats(layers)
        if repeat_mlp is not None and not any(repeats):
            raise ValueError("repeat_mlp: no plan visits a block again; set model.depth.num_loops, or repeat_mlp=none")
        self.blocks: list[Block] = nn.ModuleList(  # type: ignore[assignment]
            Block(
                dim,
                layer,
                layers,
                gains[layer],
                None if layer in bare else attention,
                mlp,
                layer_scale,
                mix_init,
                repeat_mlp,
                repeats[layer],
            )
            for layer in range(layers)
        )
        self.vectors = None
        if vectors is not None:
            places = self._places(bare)
            self.vectors = vectors(dim, self.attention.num_heads, gains[-1], layers, places)
        self.lanes = lanes(layers) if lanes is not None else None
        if self.lanes is not None:
            self.plans = {name: plan.formed(self.lanes.form) for name, plan in self.plans.items()}
        self.plan_name = "plain"
        num_skips = max(plan.num_skips for plan in self.plans.values())
        if num_skips:
            self.declare("skip_weights", (num_skips, dim), "scalar", constant(1.0))
        self.gated_skips = bool(num_skips) and skip_gates
        if self.gated_skips:
            self.declare("skip_gates", (num_skips, dim), "scalar", constant(0.0))
        self.final_norm = RMSNorm()
        self.head: TiedHead | UntiedHead | FactoredHead = head(vocab_size, dim)
        self.softcap = softcap(vocab_size) if softcap is not None else None
        self.bigram: BigramHash | None = None
        self.value_embedding: ValueEmbedding | None = None
        self.skip_compressors: nn.ModuleList | None = None
        self.phinta: PhiNTA | None = None
        self.recurrence: Recurrence | None = None
        self.equilibrium: Equilibrium | None = None
        self.series: nn.ModuleDict | None = None  # coefficients that layers share
        fit_all(self, fittings)
        self.controlled = controlled(self)
        self.precision = precision if precision is not None else Precision(parameters={}, autocast="bfloat16")
        initialise(self, seed)
        self.base_model_dim = mup.base_model_dim if mup is not None else None
        self.logit_multiplier: float | None = None
        self.temperature = 1.0
        if mup is not None:
            if isinstance(self.head, FactoredHead):
                raise ValueError("mup: how a tied head of two factors scales is not known; head=untied has none")
            scale_initial_values(self, mup)
            self.logit_multiplier = mup.logit_multiplier(dim) if isinstance(self.head, TiedHead) else None
        self.precision.apply(self)

    def _repeats(self, layers: int) -> list[int]:
        """How often each block is visited again, in the plan that does so most."""
        visits = zip(*(plan.visits(layers) for plan in self.plans.values()), strict=True)
        return [max(counts) - 1 for counts in visits]

    def _places(self, bare: set[int]) -> int:
        """Places of the longest plan. ValueError when another block is walked in the place of one without attention."""
        walked = [step for plan in self.plans.values() for step in plan.passes if step.slot != step.block]
        if any(step.slot in bare for step in walked):
            raise ValueError("vectors=virtual: another block is walked in the place of one without attention")
        return max(plan.num_slots for plan in self.plans.values())

    @property
    def plan(self) -> LayerPlan:
        """The plan that forward walks now."""
        return self.plans[self.plan_name]

    def set_plan(self, name: str) -> None:
        """Walk the plan `name` from now on; `plans` names them in the order in which training comes to them."""
        if name not in self.plans:
            raise ValueError(f"no plan {name!r}: choose one of {', '.join(self.plans)}")
        self.plan_name = name

    @property
    def reach(self) -> int:
        """On how many tokens before its own a place's embedding depends."""
        pairs = len(self.bigram.settings.primes) - 1 if self.bigram is not None else 0
        return pairs + (self.smear is not None)

    @property
    def attentions(self) -> list[CausalSelfAttention]:
        """The attention of every block that has one, in order."""
        return [block.attn for block in self.blocks if block.attn is not None]

    @property
    def attention(self) -> CausalSelfAttention:
        """The first block's that has one."""
        return self.attentions[0]

    def copies(self, plan: str) -> dict[str, str]:
        """Parameters of MLPs whose visits the plan `plan` does not make -> those of their blocks that they begin as."""
        visits = self.plans[plan].visits(len(self.blocks))
        return {
            f"blocks.{layer}.repeats.{index}.{name}": f"blocks.{layer}.mlp.{source}"
            for layer, block in enumerate(self.blocks)
            for index, repeat in enumerate(block.repeats)
            if index + 1 >= visits[layer]
            for name, source in repeat.sources().items()
        }

    @torch.no_grad()
    def begin_plan(self, name: str) -> dict[str, str]:
        """Go on training with the plan `name`: MLPs of visits that the present plan does not make become copies. Gives
        what was copied: parameter -> parameter that it was copied from."""
        before = self.copies(self.plan_name)
        self.set_plan(name)
        after = self.copies(name)
        begun = {target: source for target, source in before.items() if target not in after}
        for target, source in begun.items():
            self.get_parameter(target).copy_(self.get_parameter(source))
        return begun

    def vectors_of(self, step: Pass) -> VectorSet | None:
        """The vectors of a pass, where they are not those of its block."""
        if self.vectors is None or step.slot == step.block:
            return None
        if step.slot >= len(self.blocks):
            return self.vectors.more[step.slot - len(self.blocks)].set()
        return self.blocks[step.slot].vectors()

    def forward(self, tokens: Tensor, context: Context = PLAIN) -> Tensor:
        """tokens int64 [B, T] -> normed hidden states [B, T, dim]; `logits` turns them into scores."""
        context = context if context.walk is not None else context.begun(tokens)
        walk = context.walk
        assert walk is not None  # begun
        x = x0 = walk.kept["x0", 0] = self._embed(tokens, context)
        if self.value_embedding is not None:
            self.value_embedding(x.dtype, self.plan, walk)
        kept: list[Tensor] = []
        lanes: list[Tensor] = []
        for step in self.plan.passes:
            skip = kept.pop() if step.pop is not None else None
            if step.form == "lanes":
                lanes = self._walk_lanes(lanes or [x, x], x0, skip, step, context)
                walk.offer(step.block, lanes)
                continue
            if skip is not None:
                x = self._mix_skip(x, skip, step)
            before, x = x, self._visited(x, x0, step, context)
            if self.recurrence is not None:
                x = self.recurrence(before, x, step, walk)
            walk.offer(step.block, [x])
            if step.push:
                kept.append(x)
        if lanes and self.lanes is not None:
            x = self.lanes.merge(lanes)
        walk.offer(LAST, [x])
        for part in self.controlled:
            part.observe(walk)
        x = self.final_norm(x)
        return x if self.phinta is None else self.phinta(x)

    def _visited(self, x: Tensor, x0: Tensor, step: Pass, context: Context) -> Tensor:
        """What a pass on one stream [B, T, dim] makes of it."""
        block, vectors = self.blocks[step.block], self.vectors_of(step)
        if self.equilibrium is not None and self.equilibrium.layer == step.block:
            return self.equilibrium(block, x, x0, step, context, vectors)
        return block(x, x0, step, context, vectors)

    def evaluations(self, block: int) -> int:
        """How often a pass through `block` evaluates it in training."""
        if self.equilibrium is None or self.equilibrium.layer != block:
            return 1
        return 2 * max(self.equilibrium.choices)

    def _embed(self, tokens: Tensor, context: Context) -> Tensor:
        """tokens int64 [B, T] -> where the stream begins, [B, T, dim]."""
        embedded = self.precision.stream(self.tok_emb(tokens))
        if self.bigram is not None:
            embedded = self.bigram(embedded, tokens, context.packing)
        if self.smear is None:
            return rms_norm(embedded)
        if context.fused.smear_norm is not None and isinstance(self.smear, SmearGate):
            return context.fused.smear_norm(embedded, self.smear.gates(embedded, tokens))
        if self.smear.after_norm:
            return self.smear(rms_norm(embedded), tokens)
        return rms_norm(self.smear(embedded, tokens))

    def _walk_lanes(
        self, lanes: list[Tensor], x0: Tensor, skip: Tensor | None, step: Pass, context: Context
    ) -> list[Tensor]:
        assert self.lanes is not None  # it decided the form
        if skip is not None:
            chosen = self.lanes.skip_lanes
            lanes = [self._mix_skip(x, skip, step) if lane in chosen else x for lane, x in enumerate(lanes)]
        block = self.blocks[step.block]
        return [block.adapted(x) for x in self.lanes(lanes, x0, block, step, context, self.vectors_of(step))]

    def _mix_skip(self, x: Tensor, skip: Tensor, step: Pass) -> Tensor:
        assert step.pop is not None  # there is a skip
        if self.skip_compressors is not None:
            skip = self.skip_compressors[step.pop](skip)
        else:
            skip = self.skip_weights[step.pop].to(x.dtype) * skip
        if not self.gated_skips:
            return x + skip
        return skip + torch.sigmoid(self.skip_gates[step.pop]).to(x.dtype) * (x - skip)

    def logits(self, hidden: Tensor, context: Context = PLAIN) -> Tensor:
        """hidden [B, T, dim] -> fp32 logits [B, T, vocab_size], capped where the model has a softcap, over the
        `temperature` that an artifact may bring along (pgolf.quant.temperature)."""
        logits = self.capped(self.scores(hidden, context))
        return logits if self.temperature == 1.0 else logits / self.temperature

    def scores(self, hidden: Tensor, context: Context = PLAIN) -> Tensor:
        """hidden [B, T, dim] -> what the head makes of it, [B, T, vocab_size], before the cap."""
        if self.logit_multiplier is not None:
            hidden = hidden * self.logit_multiplier
        return self.head(hidden, self.tok_emb.weight, context)

    def capped(self, scores: Tensor) -> Tensor:
        """scores [B, T, vocab_size] -> fp32 logits."""
        return self.softcap(scores) if self.softcap is not None else scores.float()

    def adapter_sites(self) -> list[tuple[int, str, int, int]]:
        """(slot, site, in_features, out_features) of every place in the current plan where an adapter may attach, each
        once."""
        found = []
        for step in self.plan.passes:
            outputs = self.blocks[step.block].site_outputs()
            found += [(step.slot, site, self.dim, out_features) for site, out_features in outputs.items()]
        return [*dict.fromkeys(found), (HEAD_SLOT, "head", self.dim, self.vocab_size)]

    def calibration_sites(self) -> dict[str, nn.Module]:
        """For each weight matrix the module whose first input [..., in_features] it multiplies.

        An embedding that is not also the head multiplies nothing, so it has no site.
        """
        sites: dict[str, nn.Module] = {}
        for name, module in self.named_modules():
            weight = getattr(module, "weight", None)
            if weight is not None and isinstance(module, Part) and module.roles.get("weight") in ("matrix", "head"):
                sites[f"{name}.weight"] = module
        if not isinstance(self.head, UntiedHead):
            sites["tok_emb.weight"] = self.head.table if isinstance(self.head, FactoredHead) else self.head
        return sites
