"""The container of PR 1855's "pergroup" artifacts: streams of bytes, one after another.

b"PGRP", the number of streams, their lengths (unsigned 32-bit little-endian each), the streams.
"""

import struct
from collections.abc import Sequence

MAGIC = b"PGRP"


def pack_streams(streams: Sequence[bytes]) -> bytes:
    """One blob of the streams."""
    lengths = struct.pack(f"<{len(streams) + 1}I", len(streams), *map(len, streams))
    return MAGIC + lengths + b"".join(streams)


def unpack_streams(blob: bytes) -> list[bytes]:
    """The streams of a blob. Raises ValueError when it is cut off, too long or of another format."""
    if not blob.startswith(MAGIC) or len(blob) < 8:
        raise ValueError("this is no blob of grouped streams: it does not start with PGRP")
    (count,) = struct.unpack_from("<I", blob, 4)
    start = 8 + 4 * count
    if len(blob) < start:
        raise ValueError(f"the blob is cut off: {count} streams cannot be in {len(blob)} bytes")
    lengths = struct.unpack_from(f"<{count}I", blob, 8)
    if start + sum(lengths) != len(blob):
        raise ValueError(f"the blob has {len(blob)} bytes instead of {start + sum(lengths)}")
    streams = []
    for length in lengths:
        streams.append(blob[start : start + length])
        start += length
    return streams
