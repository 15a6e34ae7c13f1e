"""Grouped streams: in and out again, and no damage goes unnoticed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgolf.interop.grouped import pack_streams, unpack_streams


@given(st.lists(st.binary(max_size=20), max_size=5))
def test_round_trip(streams):
    assert unpack_streams(pack_streams(streams)) == streams


def test_damage_is_refused():
    blob = pack_streams([b"abc", b"defg"])
    for damaged in (b"", b"PGRQ" + blob[4:], blob[:10], blob[:-1], blob + b"x", b"PGRP\xff\xff\xff\xff"):
        with pytest.raises(ValueError, match="blob"):
            unpack_streams(damaged)
