"""A cap on the largest singular value of matrices, kept by scaling them back after the step."""

import torch
from torch import Tensor

from pgolf.optim.transforms import State


class SpectralCap:
    """After Muon's step, W <- W min(1, cap / sigma), sigma the largest singular value of W (spectral caps of jzmyres'
    fork; power iteration kept from step to step: Miyato et al. 2018, arXiv 1802.05957).

    u = W v / |W v|, v <- W^T u, sigma = |v|, v <- v / sigma, `iterations` times a step, in fp32. v begins as the same
    random vector for every matrix and is kept with the optimiser's state, `singular_vector` [n, cols], so a resumed run
    and any number of ranks scale alike. sigma is never above the largest singular value: a matrix whose leading
    direction has just changed may exceed the cap for a few steps, until v has followed. All matrices of the role are
    capped that had a gradient in the step; the weight is capped, not what a model makes of it (an orthogonal factor,
    the product of two). Without a cap, Muon's decay bounds a matrix by about sqrt(max(1, rows/cols)) / weight_decay in
    the long run: 21 for the map up of an MLP and 11 for a square one, with the published 0.095.

    Raises ValueError when the cap is not positive or there is no iteration.
    """

    def __init__(self, *, cap: float, iterations: int) -> None:
        if not cap > 0.0 or iterations < 1:
            raise ValueError(f"the spectral cap={cap} must be positive and iterations={iterations} at least 1")
        self.cap, self.iterations = cap, iterations

    def initial_state(self, n: int, rows: int, cols: int, device: torch.device) -> State:
        """Where power iteration begins, unit vectors [n, cols]."""
        begun = torch.randn(cols, generator=torch.Generator().manual_seed(0))
        return {"singular_vector": (begun / begun.norm()).to(device).repeat(n, 1)}

    def factors(self, weights: Tensor, state: State) -> Tensor:
        """What each of weights [n, rows, cols] is multiplied with, fp32 [n]; changes `state`."""
        w, v = weights.float(), state["singular_vector"][..., None]
        sigma = w.new_zeros(len(w))
        tiny = torch.finfo(torch.float32).tiny
        for _ in range(self.iterations):
            u = w @ v
            u = u / u.norm(dim=1, keepdim=True).clamp_min(tiny)
            after = w.mT @ u
            sigma = after.norm(dim=(1, 2))
            # a matrix of zeros says nothing of its direction
            v = torch.where((sigma > tiny)[:, None, None], after / sigma.clamp_min(tiny)[:, None, None], v)
        state["singular_vector"] = v[..., 0]
        return (self.cap / sigma.clamp_min(tiny)).clamp_max(1.0)
