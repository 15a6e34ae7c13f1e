"""A gate that mixes each token's embedding with the one before it."""

import torch
from torch import Tensor, nn

from pgolf.model.roles import Linear, Part, constant


class SmearGate(Part):
    """x_t = e_t + lambda sigmoid(w e_t[:width]) e_{t-1} on the raw embeddings e; x_0 = e_0 (PR 1667).

    smear_gate.weight [1, width] and smear_lambda [1] start at 0: at first nothing is mixed. bos_id: the token that
    takes nothing from before it, so that a document does not read the end of its neighbour in a packed row (PR 1851);
    None: every token does, as first published. Raises ValueError when the gate is wider than the model.
    """

    smear_lambda: nn.Parameter

    def __init__(self, dim: int, *, width: int, bos_id: int | None) -> None:
        super().__init__()
        if not 0 < width <= dim:
            raise ValueError(f"smear width={width} must lie between 1 and model.dim={dim}")
        self.width, self.bos_id = width, bos_id
        self.smear_gate = Linear(width, 1, "gate", constant(0.0))
        self.declare("smear_lambda", (1,), "scalar", constant(0.0))

    def forward(self, embedded: Tensor, tokens: Tensor) -> Tensor:
        """embedded [B, T, dim], tokens int64 [B, T] -> [B, T, dim]."""
        gate = torch.sigmoid(self.smear_gate(embedded[..., : self.width]))
        gate = self.smear_lambda.to(gate.dtype) * gate
        if self.bos_id is not None:
            gate = gate * (tokens != self.bos_id)[..., None].to(gate.dtype)
        mixed = embedded[:, 1:] + gate[:, 1:] * embedded[:, :-1]
        return torch.cat((embedded[:, :1], mixed), dim=1)
