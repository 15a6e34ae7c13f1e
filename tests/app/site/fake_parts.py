"""Parts with the calling convention of the real ones, and nothing in them."""

from collections.abc import Callable
from typing import Literal


class Data:
    vocab_size = 16

    def __init__(self, *, name: str, source: Literal["pydocs", "text"], val_fraction: float) -> None:
        self.name = name


class Gate:
    def __init__(self, dim: int, *, width: int) -> None:
        self.width = width


class Attention:
    def __init__(self, dim: int, *, num_heads: int, gate: Callable[[int], Gate] | None) -> None:
        if dim % num_heads:
            raise ValueError(f"dim={dim} is not divisible by num_heads={num_heads}")
        self.gate = gate(dim) if gate is not None else None


class Model:
    def __init__(
        self,
        vocab_size: int,
        seed: int,
        *,
        dim: int,
        attention: Callable[[int], Attention],
        qk_gain: float = 5.0,
        hidden: list[int] | None = None,
        tie: bool = True,
    ) -> None:
        import torch

        self.attention = attention(dim)
        self.weight = torch.nn.Parameter(torch.zeros(vocab_size, dim))


class Groups:
    def __init__(self, *, lr: float, betas: tuple[float, float]) -> None:
        assert isinstance(betas, tuple), betas
        if lr <= 0:
            raise ValueError(f"lr={lr} must be positive")


class Optim:
    def __init__(self, model: Model, *, matrix: Groups, scalar: Callable[..., object]) -> None:
        self.optimizer = scalar([model.weight])


class Train:
    """behaviour: what the fake run does (finish, fail, refuse, hang, die, too_large); victim: which rank."""

    def __init__(self, *, steps: int, behaviour: str, victim: int | None) -> None:
        self.steps, self.behaviour, self.victim = steps, behaviour, victim


class Quant:
    def __init__(self, *, coder: Literal["brotli", "zstd"], schemes: dict[str, Callable[..., object]]) -> None:
        self.coder = coder


class Scheme:
    def __init__(self, *, bits: int) -> None:
        if not 1 <= bits <= 8:
            raise ValueError(f"bits={bits} must be in 1..8")


class Ttt:
    def __init__(self, *, phases: int) -> None:
        self.phases = phases


class Audit:
    def __init__(self, *, probes: int) -> None:
        self.probes = probes
