"""Rotations in front of weight matrices: made from a seed alone, and taken back wherever an artifact is loaded.

SpinQuant (Liu et al., 2024, arXiv 2405.16406) in the form of PR 1695: y = W x = (W R) (R^T x) for an orthogonal R, so
that W R is quantised instead of W and only the quantisation error changes. Published scripts rotate the inputs in
every forward; here loading multiplies the decoded W R by R^T, which is the same function, costs nothing later, and
leaves nothing that a forward could forget: no other module ever sees rotated weights. Nothing is stored of R. The
header marks the tensors ("rows@attn_in" in place of "rows"), and the metadata name kind and seed.
"""

import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from pgolf.quant.encoded import Encoded, decode

Site = Literal["attn_in", "attn_proj_in", "mlp_in", "mlp_proj_in"]
SITES: tuple[Site, ...] = get_args(Site)
"""Inputs of queries, keys and values; of the output projection of attention; of the MLP; of its second half."""
KINDS = ("internal_only", "online")
MARK = "@"
MAX_ROTATIONS = 8
"""Different rotations of one artifact: each takes its time. A model has one for each site."""
MAX_SIZE = 1 << 13
"""Inputs of a rotated matrix, at most: a rotation takes memory that the sizes in a header do not bound."""


def tag_seed(seed: int, tag: str) -> int:
    """The seed of the rotation named `tag`: the first four bytes of SHA-256("seed:tag"), big-endian."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{tag}".encode()).digest()[:4], "big")


@functools.lru_cache(maxsize=8)
def signed_hadamard(size: int, generator_seed: int) -> Tensor:
    """An orthogonal matrix of near equal magnitudes, float64 [size, size].

    The Sylvester Hadamard matrix of the next power of two over its root, its rows with random signs, cut to the first
    `size` rows and columns and, where something was cut off, made orthogonal by QR (leading blocks of a Sylvester
    matrix are never singular). The diagonal of QR's triangle is taken as positive, which makes the result one of the
    seed and not of the library; the published routine leaves signs of columns to LAPACK, and rounding to symmetric
    levels does not see them. ValueError for a size that is not 1 to MAX_SIZE.
    """
    if not 1 <= size <= MAX_SIZE:
        raise ValueError(f"a rotation of {size} inputs is not made; it has 1 to {MAX_SIZE}")
    whole, power = torch.ones(1, 1, dtype=torch.float64), 1
    while power < size:
        whole = torch.cat([torch.cat([whole, whole], 1), torch.cat([whole, -whole], 1)])
        power *= 2
    signs = torch.randint(0, 2, (power,), generator=torch.Generator().manual_seed(generator_seed)) * 2 - 1
    block = (whole * signs[:, None] / power**0.5)[:size, :size]
    if power == size:
        return block
    orthogonal, triangle = torch.linalg.qr(block)
    return cast(Tensor, orthogonal * triangle.diagonal().sign())


@dataclass(frozen=True)
class Online:
    """The four rotations of a seed, each shared by all layers (PR 1695)."""

    seed: int

    def matrix(self, site: str, size: int) -> Tensor:
        """R of a site, float64 [size, size]; ValueError for a site that does not exist."""
        if site not in SITES:
            raise ValueError(f"{site[:40]!r} is none of the sites {', '.join(SITES)}")
        return signed_hadamard(size, tag_seed(self.seed, site))

    def turn(self, weight: Tensor, site: str) -> Tensor:
        """W R of a weight [rows, cols], in its dtype."""
        return (weight.double() @ self.matrix(site, weight.shape[1]).to(weight.device)).to(weight.dtype)

    def turn_hessian(self, hessian: Tensor, site: str) -> Tensor:
        """R^T H R of a Hessian [cols, cols]: that of the inputs R^T x."""
        rotation = self.matrix(site, len(hessian)).to(hessian.device)
        return (rotation.T @ hessian.double() @ rotation).to(hessian.dtype)

    def turn_back(self, weight: Tensor, site: str) -> Tensor:
        """W from W R; ValueError when it is no matrix."""
        if weight.ndim != 2:
            raise ValueError(f"a tensor of shape {tuple(weight.shape)} cannot have been rotated")
        return (weight.double() @ self.matrix(site, weight.shape[1]).T.to(weight.device)).to(weight.dtype)


def of_metadata(metadata: dict[str, Any]) -> Online | None:
    """The rotation that loading must take back, None where it need not. ValueError for one that this version does not
    know: its weights would be evaluated as something that they are not."""
    named = metadata.get("rotation")
    if named is None:
        return None
    if not isinstance(named, dict) or named.get("kind") not in KINDS or type(named.get("seed")) is not int:
        raise ValueError(f"the rotation {str(named)[:80]} is unknown; this version knows {', '.join(KINDS)}")
    return Online(named["seed"]) if named["kind"] == "online" else None


def check_count(tensors: Iterable[Encoded]) -> None:
    """ValueError when these tensors need more than MAX_ROTATIONS different rotations."""
    needed = {(one.decoder.partition(MARK)[2], one.shape[-1:]) for one in tensors if MARK in one.decoder}
    if len(needed) > MAX_ROTATIONS:
        raise ValueError(f"its tensors need {len(needed)} different rotations, and at most {MAX_ROTATIONS} are made")


def marked(encoded: Encoded, site: str | None) -> Encoded:
    """The tensor with the site in its decoder's name, which no decoder has: what does not know of it cannot read it."""
    return encoded if site is None else replace(encoded, decoder=f"{encoded.decoder}{MARK}{site}")


def decode_in_place(encoded: Encoded, rotation: Online | None) -> Tensor:
    """The dequantised tensor with its rotation taken back. ValueError when it was rotated and `rotation` is None, or
    its parts do not fit."""
    decoder, mark, site = encoded.decoder.partition(MARK)
    values = decode(replace(encoded, decoder=decoder))
    if not mark:
        return values
    if rotation is None:
        raise ValueError(f"it is rotated at {site[:40]!r}, and the metadata name no rotation to take back")
    return rotation.turn_back(values, site)
