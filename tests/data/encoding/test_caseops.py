"""CaseOps against the published figures and against a state machine over characters."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pgolf.data.encoding import caseops
from pgolf.data.encoding.caseops import ALLCAPS, CAPNEXT, ESC, TITLE, CaseOpsError
from pgolf.errors import UserError
from tests.support import GOLDEN

from .. import reference

# Every Python string, with operators, letters and lone surrogates often.
STRINGS = st.text(
    st.one_of(st.sampled_from(f"{TITLE}{ALLCAPS}{CAPNEXT}{ESC}abzABZ 1'é\ud800"), st.characters(codec=None)),
    max_size=30,
)
MANY = settings(deadline=None, max_examples=2000)


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("", ""),
        ("plain", "plain"),
        ("I", f"{TITLE}i"),
        ("The", f"{TITLE}the"),
        ("NASA", f"{ALLCAPS}nasa"),
        ("McDonald", f"{TITLE}mc{CAPNEXT}donald"),
        ("iPhone", f"i{CAPNEXT}phone"),
        ("USAs", f"{TITLE}u{CAPNEXT}s{CAPNEXT}as"),
        ("DON'T", f"{ALLCAPS}don'{TITLE}t"),
        ("ÉA_B2CD", f"É{TITLE}a_{TITLE}b2{ALLCAPS}cd"),
        (TITLE + "A", f"{ESC}{TITLE}{TITLE}a"),
    ],
)
def test_words(text, spelled):
    assert caseops.encode(text) == spelled
    assert caseops.decode(spelled) == text


@MANY
@given(STRINGS)
def test_every_string_comes_back(text):
    spelled = caseops.encode(text)
    assert spelled == reference.spell(text)
    assert caseops.decode(spelled) == text == caseops.decode(spelled, malformed="keep")


@MANY
@given(STRINGS)
@example(f"{TITLE}{CAPNEXT}a")
@example(f"{ALLCAPS}ab{ESC}cd{ESC}éf")
@example(f"{CAPNEXT}{ESC}é{ESC}ab")
@example(f"{ALLCAPS}{ESC}ab")
def test_decoding_is_exactly_as_strict_as_the_state_machine(text):
    try:
        expected = reference.read(text)
    except reference.MalformedError:
        with pytest.raises(CaseOpsError) as error:
            caseops.decode(text)
        assert text[error.value.position] in caseops.OPERATORS
        kept = caseops.decode(text, malformed="keep")
        assert any(operator in kept for operator in caseops.OPERATORS)
    else:
        assert caseops.decode(text) == expected == caseops.decode(text, malformed="keep")


@pytest.mark.parametrize(
    ("text", "position", "reason"),
    [
        (f"ab{TITLE}c", 2, "TITLE stands inside a word"),
        (f"a {ALLCAPS}1", 2, "ALLCAPS is followed by '1' where a letter is needed"),
        (f"{CAPNEXT}{CAPNEXT}a", 0, "CAPNEXT is followed by CAPNEXT"),
        (f"a {ESC}", 2, "ESC ends the text"),
    ],
)
def test_the_error_says_where_and_why(text, position, reason):
    with pytest.raises(UserError, match=reason) as error:
        caseops.decode(text)
    assert error.value.position == position and error.value.reason.startswith(reason.split()[0])


def test_what_a_model_wrote_stays_visible():
    assert caseops.decode(f"{TITLE}the ca{TITLE}t{CAPNEXT}", malformed="keep") == f"The ca{TITLE}t{CAPNEXT}"


def test_time_grows_with_length_only():
    """Runs that a backtracking pattern would take minutes for."""
    for text in ("a" * 200_000, "A" * 200_000 + "a", "aA" * 100_000, ESC * 200_000):
        assert caseops.decode(caseops.encode(text)) == text
    for text in (CAPNEXT + f"{ESC}a" * 100_000, ALLCAPS + "a" * 200_000 + CAPNEXT):
        with pytest.raises(CaseOpsError):
            caseops.decode(text)


def golden(name):
    path = GOLDEN / name
    if not path.exists():
        pytest.skip(f"needs {path} beside the checkout")
    return json.loads(path.read_text())


def string(code_points):
    return "".join(map(chr, code_points))


def test_equals_the_published_encoder():
    items = golden("caseops_strings.json")["items"]
    for item in items:
        assert caseops.encode(string(item["s"])) == string(item["enc"])
        assert caseops.decode(string(item["enc"])) == string(item["s"])
    others = golden("caseops_other_versions.json")
    for item in others:
        assert caseops.encode(string(item["s"])) == string(item["v2"])
    assert len(items) >= 256 and len(others) >= 60


def test_refuses_what_the_published_decoder_refuses():
    items = golden("caseops_decode_malformed.json")
    for item in items:
        if item["ok"]:
            assert caseops.decode(string(item["s"])) == string(item["out"])
        else:
            with pytest.raises(CaseOpsError):
                caseops.decode(string(item["s"]))
    assert {item["ok"] for item in items} == {True, False}
