"""Which tokens are operators of the text transform, whether the vocabulary has a piece for each or spells them."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from pgolf.data.encoding.byte_tokenizer import OFFSET, ByteTokenizer
from pgolf.data.encoding.caseops import OPERATORS
from pgolf.data.encoding.frontend import FrontEnd
from pgolf.data.shards import Tokens, blocks

SPELLED = [operator.encode() for operator in OPERATORS]
"""UTF-8 of each operator: three bytes, of which the first two are the same."""


class OperatorTokens:
    """The tokens of one front end that are operators: pieces of their own, or the three byte tokens of one.

    Attributes:
        pieces: int64; ids that are one operator each.
        byte_ids: int64 [256]; the id of each byte.
    """

    def __init__(self, front_end: FrontEnd):
        tokenizer = front_end.tokenizer
        pieces = (front_end.piece(token) for token in range(front_end.vocab_size))
        self.pieces = np.array([token for token, piece in enumerate(pieces) if piece in OPERATORS], np.int64)
        self.byte_ids = np.arange(256) + OFFSET if isinstance(tokenizer, ByteTokenizer) else tokenizer.byte_ids

    def mask(self, ids: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
        """bool [n]; whether each token is an operator or one of the bytes that spell it."""
        found = np.isin(ids, self.pieces)
        first, second = self.byte_ids[[SPELLED[0][0], SPELLED[0][1]]]
        thirds = self.byte_ids[[spelled[2] for spelled in SPELLED]]
        begins = np.flatnonzero(ids[:-2] == first)
        begins = begins[(ids[begins + 1] == second) & np.isin(ids[begins + 2], thirds)]
        for byte in range(3):
            found[begins + byte] = True
        return found

    def count(self, shards: Iterable[Tokens]) -> int:
        """Such tokens in a sequence of shards, those that cross a shard's end included."""
        total, tail = 0, np.empty(0, np.uint16)
        for shard in shards:
            for _, part in blocks(shard):
                block = np.concatenate([tail, part])
                total += int(self.mask(block).sum()) - int(self.mask(tail).sum())
                tail = block[-2:]
        return total
