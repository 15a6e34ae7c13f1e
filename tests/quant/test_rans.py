"""The coder of matrices: lossless, deterministic, near the entropy, and calm in the face of damage."""

import math
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pgolf.quant import rans, rans_tables
from pgolf.quant.coders import CODERS
from pgolf.quant.encoded import trellis_codebooks
from pgolf.quant.rans import Columns
from pgolf.quant.rans_encoder import Matrix, encode
from pgolf.quant.rans_forms import classes_under, codebooks_of, prepare, without_drift
from pgolf.quant.rans_side import Form, Side

MATRICES = hnp.arrays(
    np.int8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=70), elements=st.integers(-128, 127), fill=st.just(3)
)


def shapes_of(streams: list[list[np.ndarray]]) -> list[list[tuple[int, int]]]:
    return [[(matrix.shape[0], matrix.shape[1]) for matrix in stream] for stream in streams]


def coded(streams: list[list[np.ndarray]], segment: int = 0) -> list[bytes]:
    return encode([[Matrix(matrix, segment) for matrix in stream] for stream in streams])


def gaussian(
    shape: tuple[int, int], deviation: float, seed: int = 0, rows: float = 0.0, cols: float = 0.0
) -> np.ndarray:
    generator = np.random.default_rng(seed)
    spread = np.exp(rows * generator.standard_normal((shape[0], 1)) + cols * generator.standard_normal((1, shape[1])))
    return np.clip(np.round(generator.standard_normal(shape) * spread * deviation), -127, 127).astype(np.int8)


def entropy_bytes(matrix: np.ndarray) -> float:
    counts = np.unique(matrix, return_counts=True)[1]
    return float(-(counts * np.log2(counts / matrix.size)).sum() / 8)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(MATRICES, min_size=1, max_size=2), max_size=3), st.sampled_from([0, 0, 1, 5, 64]))
def test_lossless_and_deterministic(streams: list[list[np.ndarray]], segment: int) -> None:
    payloads = coded(streams, segment)
    decoded = rans.decode(payloads, shapes_of(streams))
    assert len(decoded) == len(streams)
    for before, after in zip(streams, decoded, strict=True):
        assert len(before) == len(after)
        for left, right in zip(before, after, strict=True):
            assert right.dtype == np.int8 and np.array_equal(left, right)
    assert coded(streams, segment) == payloads


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 1000), st.sampled_from([(700, 65), (65, 700), (1100, 30), (1, 5000), (5000, 1)]), st.floats(0, 40)
)
def test_lossless_on_gaussian_values_of_many_shapes(seed: int, shape: tuple[int, int], deviation: float) -> None:
    streams = [[gaussian(shape, deviation, seed, 0.5, 0.5)], [gaussian(shape[::-1], deviation, seed + 1)]]
    decoded = rans.decode(coded(streams), shapes_of(streams))
    assert all(np.array_equal(left[0], right[0]) for left, right in zip(streams, decoded, strict=True))


def test_overhead_is_what_was_measured() -> None:
    matrix = gaussian((1024, 512), 31 / 12.85)
    measured = sum(map(len, coded([[matrix]]))) / entropy_bytes(matrix)
    overhead = CODERS["rans"].overhead
    assert overhead is not None and measured == pytest.approx(overhead, abs=0.004)


@pytest.mark.parametrize(("rows", "cols"), [(0.0, 0.3), (0.5, 0.0), (0.4, 0.3)])
def test_spread_of_rows_and_columns_is_used(rows: float, cols: float) -> None:
    matrix = gaussian((1024, 512), 2.4, rows=rows, cols=cols)
    generator = np.random.default_rng(0)
    deviation = 2.4 * np.exp(rows * generator.standard_normal((1024, 1)) + cols * generator.standard_normal((1, 512)))
    # entropy of a finely rounded Gaussian whose deviation the coder would have to be told
    told = float(np.log2(deviation * math.sqrt(2 * math.pi * math.e)).sum() / 8)
    size = sum(map(len, coded([[matrix]])))
    assert size < entropy_bytes(matrix) * (1 - 0.4 * (rows**2 + cols**2) / 3.3 * 1.44)
    assert size < 1.02 * told


def test_columns_that_wander_are_followed() -> None:
    generator = np.random.default_rng(0)
    paths = np.cumsum(generator.standard_normal((2048, 128)) * 0.3, axis=0)
    matrix = np.clip(np.round(paths + generator.standard_normal((2048, 128)) * 2), -127, 127).astype(np.int8)
    # the moving mean lags: 4 + 4 / 64 + 0.09 * 16 of variance, and rounding twice
    told = matrix.size * math.log2(2.38 * math.sqrt(2 * math.pi * math.e)) / 8
    assert sum(map(len, coded([[matrix]]))) < 1.02 * told < 0.75 * entropy_bytes(matrix)


def test_rows_that_repeat_others_cost_next_to_nothing() -> None:
    matrix = gaussian((600, 96), 3.0)
    generator = np.random.default_rng(1)
    rows = np.where(generator.random(600) < 0.5, generator.integers(0, 600, 600) // 100, np.arange(600))
    repeated = matrix[rows]
    payloads = coded([[repeated]])
    assert np.array_equal(rans.decode(payloads, [[repeated.shape]])[0][0], repeated)
    distinct = matrix[np.unique(rows)]
    assert sum(map(len, payloads)) < sum(map(len, coded([[distinct]]))) + 600
    assert prepare(Matrix(repeated)).form.repeats is not None
    assert prepare(Matrix(repeated, 64)).form.repeats is None  # a path through a trellis needs every row


def test_spreads_that_change_down_the_rows_are_followed() -> None:
    generator = np.random.default_rng(0)
    deviation = 3.0 * 2.0 ** np.cumsum(generator.standard_normal((3000, 64)) * 0.05, axis=0)
    matrix = np.clip(np.round(generator.standard_normal((3000, 64)) * deviation), -127, 127).astype(np.int8)
    chosen = prepare(Matrix(matrix)).form
    assert chosen.memory > 0
    payloads = coded([[matrix]])
    assert np.array_equal(rans.decode(payloads, [[(3000, 64)]])[0][0], matrix)
    told = float(np.log2(np.sqrt(deviation**2 + 1 / 12) * math.sqrt(2 * math.pi * math.e)).sum() / 8)
    assert sum(map(len, payloads)) < 1.035 * told < 0.98 * entropy_bytes(matrix)


FORMS = st.builds(
    Form,
    mean=st.integers(1, 128 * rans_tables.UNIT),
    prior=st.integers(1, 255),
    drift=st.sampled_from([0, 1, 5, 12]),
    memory=st.sampled_from([0, 1, 4, 12]),
)


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.int8, st.tuples(st.integers(1, 200), st.integers(1, 40)), elements=st.integers(-127, 127)), FORMS)
def test_every_form_is_lossless(symbols: np.ndarray, form: Form) -> None:
    """The encoder knows classes of whole matrices at once, the decoder row by row: they agree whatever the form."""
    values = symbols.astype(np.int64)
    values = without_drift(values, form.drift) if form.drift else values
    columns = Columns(symbols.shape[1], Side(-255, 255, 0, rans_tables.CLASSES - 1, False, {}, [form]), form)
    for row, classes in enumerate(classes_under(form, values)):
        assert np.array_equal(columns.contexts(row), classes)
        assert np.array_equal(columns.take(row, values[row]), symbols[row])


def test_symbols_that_are_not_gaussian_get_tables_of_their_own() -> None:
    values = np.random.default_rng(0).choice(np.array([-7, 0, 7], np.int8), (512, 512), p=[0.1, 0.6, 0.3])
    assert sum(map(len, coded([[values]]))) < 1.01 * entropy_bytes(values) + 300


def test_one_set_of_lanes_serves_all_streams() -> None:
    many = [[gaussian((512, 512), 2.0, seed)] for seed in range(6)]
    payloads = coded(many)
    (lanes,) = struct.unpack_from("<H", payloads[0])
    assert lanes == 6 * 512 * 512 // 8192
    bound = sum(entropy_bytes(stream[0]) for stream in many)
    assert sum(map(len, payloads)) < 1.006 * bound


def test_the_model_is_integers_all_the_way() -> None:
    """Pinned, so that no other machine and no later change reads old artifacts with other tables."""
    assert [rans_tables.eighths(exponent) for exponent in (0, 7, 8, 40, 100)] == [1, 1, 2, 32, 5792]
    assert rans_tables.normalise(rans_tables.gaussian_weights(49, -3, 3)) == [1584, 2271, 2820, 3034, 2820, 2271, 1584]
    assert rans_tables.class_of_mean()[[0, 31, 32, 1024, 1024 * 128]].tolist() == [0, 0, 1, 41, 96]
    payload = coded([[np.arange(-32, 32, dtype=np.int8).reshape(8, 8)]])[0]
    assert payload.hex() == PINNED


PINNED = (
    "01001ac022001800000078da7bf05f9ec1d3938181c18181e13f906200002ece03d0ab40c2c1b183ad04390717c90d0cab0e"
    "d891a71495592e5d7ea1a425f769356cb82fc8f3c076bfb8963aae7c33be68ff"
)


def test_tables_of_every_class_are_gaussian() -> None:
    for spread in range(1, rans_tables.CLASSES, 7):
        counts = rans_tables.normalise(rans_tables.gaussian_weights(spread, -127, 127))
        frequencies = np.array(counts, float) / (1 << rans_tables.PRECISION)
        mean = 2 ** ((8 * rans_tables.FIRST + spread - 0.5) / 8) / rans_tables.UNIT
        edges = np.array([math.erf((q + 0.5) / (mean * math.sqrt(math.pi))) for q in range(-128, 128)]) / 2
        exact = np.diff(edges) / np.diff(edges).sum()
        loss = float((exact * np.log2(np.maximum(exact, 1e-300) / frequencies)).sum())
        assert loss < 0.025


def test_codebooks_of_encoder_and_decoder_agree() -> None:
    symbols = gaussian((50, 7), 3.0)
    for segment in (1, 7, 64):
        assert np.array_equal(codebooks_of(symbols.astype(np.int64), segment), trellis_codebooks(symbols, segment))


TWO_STREAMS = [[gaussian((20, 70), 3.0), gaussian((9, 70), 1.0)], [gaussian((30, 66), 2.0, rows=1.0)]]
WHOLE = coded(TWO_STREAMS)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damage_is_refused_or_decodes_to_something_of_the_right_shape(data: st.DataObject) -> None:
    payloads = list(WHOLE)
    which = data.draw(st.integers(0, 1))
    start = data.draw(st.integers(0, len(payloads[which])))
    stop = data.draw(st.integers(start, min(len(payloads[which]), start + 20)))
    payloads[which] = payloads[which][:start] + data.draw(st.binary(max_size=20)) + payloads[which][stop:]
    try:
        decoded = rans.decode(payloads, shapes_of(TWO_STREAMS))
    except ValueError:
        return
    assert shapes_of(decoded) == shapes_of(TWO_STREAMS)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_side_information_that_lies_is_refused_or_decodes_to_something_of_the_right_shape(data: st.DataObject) -> None:
    """Forged behind right framing: fields, repeats, shifts and tables of any value."""
    repeated = gaussian((40, 70), 2.0)[np.arange(40) // 2]
    shapes = [[(40, 70), (9, 70)]]
    (payload,) = coded([[repeated, gaussian((9, 70), 1.0)]])
    (lanes,) = struct.unpack_from("<H", payload)
    at = 2 + 4 * lanes
    (length,) = struct.unpack_from("<I", payload, at)
    side = bytearray(zlib.decompress(payload[at + 4 : at + 4 + length]))
    for _ in range(data.draw(st.integers(1, 4))):
        side[data.draw(st.integers(0, len(side) - 1))] = data.draw(st.integers(0, 255))
    forged = zlib.compress(bytes(side[: data.draw(st.sampled_from([len(side), len(side), len(side) - 1]))]))
    try:
        decoded = rans.decode(
            [payload[:at] + struct.pack("<I", len(forged)) + forged + payload[at + 4 + length :]], shapes
        )
    except ValueError:
        return
    assert shapes_of(decoded) == shapes


def test_a_bomb_in_the_side_information_is_refused() -> None:
    bomb = zlib.compress(bytes(1 << 27), 9)
    payload = struct.pack("<HI", 1, 1 << 16) + struct.pack("<I", len(bomb)) + bomb
    with pytest.raises(ValueError, match="too long"):
        rans.decode([payload], [[(4, 4)]])


def test_agrees_with_constriction_on_size() -> None:
    constriction = pytest.importorskip("constriction")
    matrix = gaussian((512, 256), 2.4)
    counts = np.bincount(matrix.reshape(-1).astype(int) + 128, minlength=256)
    low, high = np.flatnonzero(counts)[[0, -1]]
    chances = counts[low : high + 1].astype(np.float32) / matrix.size
    coder = constriction.stream.queue.RangeEncoder()
    model = constriction.stream.model.Categorical(np.maximum(chances, 1e-7), perfect=False)
    coder.encode((matrix.reshape(-1).astype(np.int32) + 128 - low).astype(np.int32), model)
    assert sum(map(len, coded([[matrix]]))) < 1.005 * 4 * len(coder.get_compressed())
