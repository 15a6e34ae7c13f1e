"""Per-document low-rank adapters at the model's named sites."""

import itertools
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from pgolf.model.context import SITES
from pgolf.model.gpt import GPT
from pgolf.model.roles import on_device, stream


class LoraSettings:
    """Low-rank adapters: one pair (A, B) per document and site, learned while the document is scored (PR 1530; alpha
    from PR 1787).

    rank r; the delta is (alpha / r) x A^T B^T; targets: the sites that carry one (PR 1953 leaves out q and v); lr,
    beta1, beta2, weight_decay, epsilon: AdamW; lr_multiplier: of lr (PR 1953). warm_start: a batch's A goes on from
    the one learned by the same row of the batch before it (PR 1767); B starts at 0 in any case. Raises ValueError for
    an unknown target or a rank below 1.
    """

    def __init__(
        self,
        *,
        rank: int,
        alpha: float,
        targets: list[str],
        lr: float,
        beta1: float,
        beta2: float,
        epsilon: float,
        weight_decay: float,
        lr_multiplier: float = 1.0,
        warm_start: bool = False,
    ) -> None:
        unknown = sorted(set(targets) - set(SITES))
        if unknown or not targets:
            raise ValueError(f"ttt.lora.targets={targets}: choose some of {', '.join(SITES)}")
        if rank < 1:
            raise ValueError(f"ttt.lora.rank={rank} must be at least 1")
        self.rank, self.alpha, self.targets = rank, alpha, tuple(targets)
        self.lr, self.betas, self.epsilon, self.weight_decay = lr * lr_multiplier, (beta1, beta2), epsilon, weight_decay
        self.warm_start = warm_start

    def optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.AdamW:
        """AdamW with these settings and fresh moments, in one kernel on a GPU."""
        form = {"fused" if all(one.is_cuda for one in parameters) else "foreach": True}
        return torch.optim.AdamW(
            parameters, lr=self.lr, betas=self.betas, eps=self.epsilon, weight_decay=self.weight_decay, **form
        )


class BatchedLora(nn.Module):
    """Adapters of `rows` documents, for every virtual layer slot of the model's current plan.

    A [rows, r, in] is drawn from U(-1/sqrt(in), 1/sqrt(in)) out of a stream named `name`, or goes on from `given` (by
    the keys of `down`); B [rows, out, r] starts at 0, so the adapted model starts equal to the bare one. A GPU draws
    its own numbers: a batch at the published sizes takes 267 million, for which the GPU would wait seconds.
    """

    def __init__(
        self,
        model: GPT,
        rows: int,
        settings: LoraSettings,
        seed: int,
        name: str,
        given: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.scale = settings.alpha / settings.rank
        self.down = nn.ParameterDict()
        self.up = nn.ParameterDict()
        device = model.tok_emb.weight.device
        for slot, site, in_features, out_features in model.adapter_sites():
            if site not in settings.targets:
                continue
            key = f"{slot}:{site}"
            if given is None:
                bound = 1.0 / math.sqrt(in_features)
                first = torch.empty(rows, settings.rank, in_features, device=device)
                first.uniform_(-bound, bound, generator=on_device(stream(seed, f"{name}/{key}"), device))
            else:
                first = given[key].clone()
            self.down[key] = nn.Parameter(first.to(device))
            self.up[key] = nn.Parameter(torch.zeros(rows, out_features, settings.rank, device=device))

    def delta(self, slot: int, site: str, x: Tensor) -> Tensor | None:
        """x [rows, T, in] -> delta [rows, T, out], or None where nothing is attached."""
        return self.rows(0, len(x)).delta(slot, site, x)

    def rows(self, first: int, after: int) -> "LoraRows":
        """The adapters of the documents [first, after) of the batch."""
        return LoraRows(self, first, after)

    def learned(self) -> dict[str, Tensor]:
        """The A of every place as it is now, for the next batch to go on from."""
        return {key: value.detach().clone() for key, value in self.down.items()}


class LoraRows:
    """Adapters of some of the documents of a batch."""

    def __init__(self, adapters: BatchedLora, first: int, after: int) -> None:
        self._scale = adapters.scale

        def cut(values: Tensor) -> Tensor:
            """A copy where it does not begin at the first row, and nothing that wants gradients where none are made: to
            the compiler these would be other kinds of tensors."""
            rows = values[first:after].clone() if first else values[:after]
            return rows if torch.is_grad_enabled() else rows.detach()

        self._pairs = {key: (cut(down), cut(adapters.up[key])) for key, down in adapters.down.items()}

    def tensors(self) -> Iterator[Tensor]:
        """Every A [n, r, in] and B [n, out, r]."""
        return itertools.chain.from_iterable(self._pairs.values())

    def delta(self, slot: int, site: str, x: Tensor) -> Tensor | None:
        """x [n, T, in] -> delta [n, T, out] of these n documents, or None where nothing is attached."""
        if (pair := self._pairs.get(f"{slot}:{site}")) is None:
            return None
        down, up = pair
        low = torch.bmm(x, down.mT.to(x.dtype)) * self._scale  # here, where it is narrow
        return torch.bmm(low, up.mT.to(x.dtype))
