"""Where the documents of a packed row begin and end, in the forms that attention back ends want."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Document boundaries of one packed row of T tokens.

    cu_seqlens: int32 [S + 1], segment starts followed by T; zero-length segments are allowed anywhere.
    max_seqlen: no segment is longer. A constant over a run (the published records hand 2,048 to the kernel), so that
    compiled graphs and kernels see one value.
    boundaries: int32 [S + 1], the same numbers as cu_seqlens in main memory: cutting a row into documents never
    waits for the accelerator.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    boundaries: Tensor

    @classmethod
    def from_cu_seqlens(cls, cu_seqlens: Tensor, max_seqlen: int | None = None) -> "Packing":
        """Check segment boundaries (any integer dtype) and keep them.

        max_seqlen=None takes the longest segment, rounded up to a power of two so that few values occur.
        Raises ValueError unless they start at 0 and never decrease, and when a segment is longer than max_seqlen.
        """
        boundaries = cu_seqlens.to("cpu", torch.int32)
        if boundaries.ndim != 1 or len(boundaries) < 2 or int(boundaries[0]) != 0:
            raise ValueError("cu_seqlens must be a vector of at least two boundaries that starts at 0")
        lengths = boundaries.diff()
        if int(lengths.min()) < 0:
            raise ValueError("cu_seqlens must never decrease")
        longest = int(lengths.max())
        if max_seqlen is not None and longest > max_seqlen:
            raise ValueError(f"a segment of {longest} tokens is longer than max_seqlen={max_seqlen}")
        power = 1 << max(0, longest - 1).bit_length()
        return cls(cu_seqlens.to(torch.int32), power if max_seqlen is None else max_seqlen, boundaries)

    def to(self, device: torch.device) -> "Packing":
        """The same boundaries on another device; nothing waits for a GPU to be done with what it was given before."""
        cu_seqlens = self.cu_seqlens.to(device, non_blocking=device.type == "cuda")
        return Packing(cu_seqlens, self.max_seqlen, self.boundaries)

    def document_ids(self, tokens: int) -> Tensor:
        """int32 [tokens]: for each token of the row the index of its segment. Never decreases."""
        positions = torch.arange(tokens, device=self.cu_seqlens.device, dtype=torch.int32)
        return torch.bucketize(positions, self.cu_seqlens[1:], right=True, out_int32=True)


def build_cu_seqlens(
    bos_positions: npt.NDArray[np.integer], total: int, max_document_tokens: int, bucket: int
) -> torch.Tensor:
    """Segment boundaries of a packed row of `total` tokens, int32 [a multiple of `bucket`].

    A document longer than `max_document_tokens` is cut into pieces of that length (0: never cut).
    The end is repeated up to the bucket (zero-length segments), so that compiled graphs see few
    shapes.
    """
    starts = [int(position) for position in bos_positions]
    if not starts or starts[0] != 0:
        starts.insert(0, 0)
    boundaries: list[int] = []
    for start, end in zip(starts, [*starts[1:], total], strict=True):
        boundaries.extend(range(start, end, max_document_tokens or max(1, end - start)))
    boundaries.append(total)
    boundaries.extend([total] * (-len(boundaries) % bucket))
    return torch.tensor(boundaries, dtype=torch.int32)
