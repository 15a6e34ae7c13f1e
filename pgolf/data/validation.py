"""The validation text as the scorer reads it: tokens, the bytes they stand for, and where documents begin."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Ids of the control tokens; every document begins with BOS.
PAD_ID, BOS_ID, EOS_ID, UNK_ID = 0, 1, 2, 3


@dataclass(frozen=True)
class ValidationSet:
    """The validation documents, as the scorer reads them.

    Attributes:
        tokens: uint16 [n]; each document is BOS and its tokens.
        token_bytes: int32 [n]; bytes of original text a token stands for (BOS: 0).
        document_starts: int64 [d]; index of each document's BOS.
        document_bytes: int64 [d]; UTF-8 length of each original text, counted independently of the
            tokens.
        names: one per document.
    """

    tokens: npt.NDArray[np.uint16]
    token_bytes: npt.NDArray[np.int32]
    document_starts: npt.NDArray[np.int64]
    document_bytes: npt.NDArray[np.int64]
    names: list[str]

    def head(self, num_documents: int, max_tokens: int) -> "ValidationSet":
        """The first `num_documents` documents, each cut to `max_tokens` tokens (BOS included).

        A cut document's bytes are the sum over its tokens; a whole document keeps its independent
        count.
        """
        if num_documents < 1 or max_tokens < 2:
            raise ValueError("head needs at least 1 document of at least 2 tokens (BOS and one more)")
        ends = np.append(self.document_starts[1:], len(self.tokens))[:num_documents]
        starts = self.document_starts[:num_documents]
        cuts = np.minimum(ends, starts + max_tokens)
        index = np.concatenate([np.arange(s, e) for s, e in zip(starts, cuts, strict=True)])
        lengths = cuts - starts
        summed = [int(self.token_bytes[s:e].sum()) for s, e in zip(starts, cuts, strict=True)]
        return ValidationSet(
            tokens=self.tokens[index],
            token_bytes=self.token_bytes[index],
            document_starts=np.cumsum(lengths) - lengths,
            document_bytes=np.where(cuts == ends, self.document_bytes[:num_documents], summed),
            names=self.names[:num_documents],
        )
