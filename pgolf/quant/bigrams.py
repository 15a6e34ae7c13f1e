"""How much of what a matrix reads belongs to bigrams that come again: the score of `pgolf.quant.allocation`.

Each token of the calibration text has the weight 1 - 1 / n, where n counts its bigram (it and the token before) in
that text: 0 for one that occurs once, near 1 for a frequent one. The score of a matrix is the mean weight of its
inputs, each input vector counting by its squared norm.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from pgolf.errors import UserError
from pgolf.quant.hessian import AddUp, Calibration

BUCKETS = (1 << 20) - 3
"""Bigrams are counted by previous * vocabulary + token modulo this prime, so that processes can add up their counts."""


def buckets(tokens: Tensor, vocab_size: int) -> Tensor:
    """The bucket of the bigram that ends at each of tokens int64 [B, T]; the first of a row follows token 0."""
    before = nn.functional.pad(tokens[:, :-1], (1, 0))
    return (before * vocab_size + tokens) % BUCKETS


class BigramCounts:
    """Counts the bigrams of all tokens that `model` is given inside the block. counts: int64 [BUCKETS]."""

    def __init__(self, model: nn.Module, vocab_size: int, device: torch.device) -> None:
        self._model, self._vocab_size = model, vocab_size
        self.counts = torch.zeros(BUCKETS, dtype=torch.int64, device=device)

    def __enter__(self) -> "BigramCounts":
        self._handle = self._model.register_forward_pre_hook(self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _listen(self, module: nn.Module, inputs: tuple[object, ...]) -> None:
        tokens = inputs[0]
        assert isinstance(tokens, Tensor)  # a model's first input
        places = buckets(tokens, self._vocab_size).reshape(-1)
        self.counts.index_add_(0, places, torch.ones_like(places))

    def weights(self, tokens: Tensor) -> Tensor:
        """1 - 1 / n of each of tokens int64 [B, T], float64 [B * T]."""
        known = self.counts[buckets(tokens, self._vocab_size).reshape(-1)].clamp_min(1)
        return 1.0 - 1.0 / known.double()


def with_bigrams(
    model: nn.Module,
    sites: Mapping[str, nn.Module],
    run_batches: Iterable[Callable[[], object]],
    counts: BigramCounts,
    calibrations: Mapping[str, Calibration],
    *,
    add_up: AddUp | None = None,
) -> dict[str, Calibration]:
    """The calibrations with the bigram score of every site, over batches that `counts` has seen.

    add_up: sums over the processes, in place. UserError when a site reads something else than a vector for each token.
    """
    if add_up is not None:
        add_up(counts.counts)
    sums = {name: torch.zeros(2, dtype=torch.float64, device=counts.counts.device) for name in sites}
    latest: list[Tensor] = []

    def read(module: nn.Module, inputs: tuple[object, ...]) -> None:
        assert isinstance(inputs[0], Tensor)
        latest[:] = [counts.weights(inputs[0])]

    def listen(name: str) -> Callable[[nn.Module, tuple[object, ...]], None]:
        def add(module: nn.Module, inputs: tuple[object, ...]) -> None:
            assert isinstance(inputs[0], Tensor)
            energy = inputs[0].detach().double().square().sum(dim=-1).reshape(-1)
            if energy.shape != latest[0].shape:
                raise UserError(f"quant.allocation: {name} does not read one vector for each token; choose another")
            sums[name] += torch.stack([(energy * latest[0]).sum(), energy.sum()])

        return add

    handles = [model.register_forward_pre_hook(read)]
    handles += [site.register_forward_pre_hook(listen(name)) for name, site in sites.items()]
    try:
        with torch.no_grad():
            for run_batch in run_batches:
                run_batch()
    finally:
        for handle in handles:
            handle.remove()
    found = dict(calibrations)
    for name, total in sums.items():
        if add_up is not None:
            add_up(total)
        weighted, whole = total.tolist()
        found[name] = replace(calibrations[name], bigrams=weighted / max(whole, 1e-300))
    return found
