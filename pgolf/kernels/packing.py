"""Where the documents of a packed row begin and end, in the two forms that attention back ends want."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Document boundaries of one packed row of T tokens.

    cu_seqlens: int32 [S + 1], segment starts followed by T; zero-length segments at the end are allowed.
    max_seqlen: length of the longest segment.
    gather: int64 [segments, max_seqlen], for each padded slot the token it holds (0 where it is padding).
    scatter: int64 [T], for each token its slot in the flattened padded form.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    gather: Tensor
    scatter: Tensor

    @classmethod
    def from_cu_seqlens(cls, cu_seqlens: Tensor) -> "Packing":
        """Build both forms from segment boundaries. Raises ValueError unless they start at 0 and never decrease."""
        starts = cu_seqlens.to(torch.int64)
        lengths = starts.diff()
        if starts.ndim != 1 or len(starts) < 2 or int(starts[0]) != 0 or bool((lengths < 0).any()):
            raise ValueError("cu_seqlens must be a vector that starts at 0 and never decreases")
        keep = lengths > 0
        starts, lengths = starts[:-1][keep], lengths[keep]
        longest = int(lengths.max())
        columns = torch.arange(longest, device=starts.device)
        valid = columns[None, :] < lengths[:, None]
        gather = torch.where(valid, starts[:, None] + columns[None, :], 0)
        scatter = valid.flatten().nonzero().squeeze(1)
        return cls(cu_seqlens.to(torch.int32), longest, gather, scatter)

    def to(self, device: torch.device) -> "Packing":
        """The same boundaries on another device."""
        return Packing(self.cu_seqlens.to(device), self.max_seqlen, self.gather.to(device), self.scatter.to(device))


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
