"""Where the documents of a packed row begin and end, in the two forms that attention back ends want."""

from dataclasses import dataclass

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
        return Packing(
            self.cu_seqlens.to(device), self.max_seqlen, self.gather.to(device), self.scatter.to(device)
        )
