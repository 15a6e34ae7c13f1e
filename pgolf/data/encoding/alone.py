"""The bytes of original text that each id stands for where it stands alone."""

import numpy as np

from pgolf.data.encoding.byte_tokenizer import ByteTokenizer
from pgolf.data.encoding.bytes import SurfaceWalk
from pgolf.data.encoding.frontend import FrontEnd
from pgolf.data.sources.documents import WORD_MARK


def bytes_alone(front_end: FrontEnd) -> tuple[list[int], list[bool]]:
    """For every id the bytes that evaluation charges it in the middle of a text, with the space that it may begin with,
    and whether it begins with one.

    An operator of a transform costs nothing; a piece that is a part of a character costs nothing either, since
    evaluation charges the character to its last part.
    """
    tokenizer, ids = front_end.tokenizer, np.arange(front_end.vocab_size)
    if isinstance(tokenizer, ByteTokenizer):
        return [int(tokenizer.count_bytes(ids[at : at + 1])[0]) for at in ids], [False] * len(ids)
    walk = SurfaceWalk(tokenizer.piece_bytes, front_end.operators)
    alone = [walk.count(ids[at : at + 1]) for at in ids]
    return [int(one[0]) for one in alone], [tokenizer.piece(token).startswith(WORD_MARK) for token in ids.tolist()]
