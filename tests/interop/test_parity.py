"""Reference numbers of the published scripts: every supported case passes, and the command says what does not.

The cases committed under tests/golden run everywhere, those of shared/golden/open where it lies in the checkout.
"""

import json
import math
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from pgolf.interop.parity.case import Case, Comparison, Unsupported
from pgolf.interop.parity.kinds import case_files, check, find_tokenizer, kind_of
from tests.support import GOLDEN

CHECKOUT = Path(__file__).parents[2]
COMMITTED = CHECKOUT / "tests" / "golden"
SUPPORTED = [path for path in case_files(COMMITTED) + case_files(GOLDEN) if kind_of(path.stem)]


@pytest.mark.parametrize("path", SUPPORTED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_case(path):
    result = check(path, find_tokenizer(path.parent))
    if result.status == "UNSUPPORTED":
        pytest.skip("; ".join(result.remarks))
    assert result.status == "PASS", "; ".join(result.remarks)


def test_the_reference_data_is_here():
    if not GOLDEN.is_dir():
        pytest.skip(f"only the committed subset was compared: {GOLDEN} is not there")
    assert find_tokenizer(GOLDEN) is not None


def test_the_longest_prefix_chooses_the_kind():
    assert kind_of("loader_baseline_ws4_rank3_seed9") == "loader_baseline"
    assert kind_of("eval_baseline_sliding") == "eval_baseline" != kind_of("eval_1736_realtok")
    assert kind_of("nothing_known") is None


def parity(monkeypatch, capsys, *arguments):
    """Exit status, lines on stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["parity.py", *map(str, arguments)])
    status = runpy.run_path(str(CHECKOUT / "scripts" / "parity.py"))["main"]()
    out, err = capsys.readouterr()
    return status, out.splitlines(), err


@pytest.fixture
def folder(tmp_path):
    """A folder with one passing case."""
    (tmp_path / "loader_cu_seqlens.json").write_bytes((COMMITTED / "loader_cu_seqlens.json").read_bytes())
    return tmp_path


def test_all_pass(folder, monkeypatch, capsys):
    status, lines, _ = parity(monkeypatch, capsys, folder)
    assert status == 0
    assert lines[0].split()[:5] == ["loader_cu_seqlens", "loader_cu_seqlens", "0.00e+00", "0.0e+00", "PASS"]
    assert lines[-1] == "1 cases: 1 pass, 0 fail, 0 unsupported"


def test_a_shuffled_micro_batch_gives_the_whole_rows_that_fit(tmp_path):
    with np.load(COMMITTED / "loader_shuffled_ws2_rank1.npz") as file:
        arrays = dict(file)
    meta = json.loads(str(arrays.pop("meta_json")))
    micro_batches = meta["world_size"] * meta["grad_accum_steps"]
    meta["global_tokens"] += micro_batches * (meta["train_seq_len"] - 1)
    np.savez(tmp_path / "loader_shuffled_rest.npz", meta_json=json.dumps(meta), **arrays)
    assert check(tmp_path / "loader_shuffled_rest.npz").status == "PASS"


def test_a_wrong_integer_fails(folder, monkeypatch, capsys):
    rows = json.loads((folder / "loader_cu_seqlens.json").read_text())
    rows[1]["cu"][0] += 3
    (folder / "loader_cu_seqlens.json").write_text(json.dumps(rows))
    status, lines, _ = parity(monkeypatch, capsys, folder)
    assert status == 1
    assert lines[0].split()[2:5] == ["3.00e+00", "0.0e+00", "FAIL"]
    assert lines[0].endswith("boundaries of row 1 differs by 3")


def test_a_crash_is_a_failure_with_its_reason_and_the_others_still_run(folder, monkeypatch, capsys):
    (folder / "ema_broken.npz").write_bytes(b"no archive")
    np.savez(folder / "ema_partial.npz", x=np.zeros((2, 2), np.float32), meta_json=json.dumps({"decay": 0.5}))
    np.savez(folder / "ema_plain.npz", x=np.zeros(3))
    status, lines, err = parity(monkeypatch, capsys, folder)
    assert status == 1 and not err
    assert [line.split()[4] for line in lines[:4]] == ["FAIL", "FAIL", "FAIL", "PASS"]
    assert "KeyError: 'ema'" in lines[1] and "ema_plain.npz holds no meta_json" in lines[2]
    assert lines[-1] == "4 cases: 1 pass, 3 fail, 0 unsupported"


def test_what_is_not_supported_is_neither_pass_nor_failure(folder, monkeypatch, capsys):
    np.savez(folder / "teleport_small.npz", x=np.zeros(3), meta_json="{}")
    (folder / "caseops_strings.json").write_text(json.dumps({"items": [{"ids": [1]}]}))
    status, lines, _ = parity(monkeypatch, capsys, folder)
    assert status == 3
    assert "UNSUPPORTED  needs the published tokenizer model" in lines[0]
    assert "UNSUPPORTED  no runner for cases of this name" in lines[2]
    assert parity(monkeypatch, capsys, folder, "--only", "loader")[0] == 0


def test_nothing_to_compare_is_said(folder, monkeypatch, capsys):
    for arguments, sentence in (
        ([folder / "missing"], "no reference cases in"),
        ([folder, "--only", "muon"], "no case begins with 'muon' in"),
        ([folder, "--tokenizer", folder / "none.model"], "there is no tokenizer model"),
    ):
        status, lines, err = parity(monkeypatch, capsys, *arguments)
        assert status == 2 and not lines and sentence in err


def test_a_tokenizer_is_found_beside_the_folder_unless_there_are_two(tmp_path):
    cases = tmp_path / "open"
    cases.mkdir()
    assert find_tokenizer(cases) is None
    (tmp_path / "a.model").touch()
    assert find_tokenizer(cases) == tmp_path / "a.model"
    (tmp_path / "b.model").touch()
    assert find_tokenizer(cases) is None
    (cases / "c.model").touch()
    assert find_tokenizer(cases) == cases / "c.model"


def test_the_outcome_is_that_of_the_quantity_furthest_beyond_its_tolerance():
    compare = Comparison()
    compare.close("loss", 1.5, 1.0, 2.0)
    assert (compare.outcome().max_error, compare.outcome().tolerance, compare.outcome().passed) == (0.5, 2.0, True)
    compare.close("gradient", [0.1, 0.3], [0.1, 0.0], 0.2)
    compare.exact("steps", 3, 3)
    outcome = compare.outcome()
    assert (outcome.max_error, outcome.tolerance, outcome.passed) == (pytest.approx(0.3), 0.2, False)
    assert outcome.remarks == ("gradient differs by 0.3",)
    compare.exact("ids", [1, 2], [1, 2, 3])
    assert compare.outcome().max_error == math.inf and compare.outcome().tolerance == 0.0


def test_many_differences_are_counted_and_nan_never_passes():
    compare = Comparison()
    for index in range(5):
        compare.exact(f"row {index}", index, -1)
    assert compare.outcome().remarks[-1] == "and 2 more of 5"
    compare = Comparison()
    compare.close("loss", math.nan, 1.0, 1.0)
    assert not compare.outcome().passed
    with pytest.raises(ValueError, match="holds nothing"):
        Comparison().outcome()


def test_a_case_without_a_tokenizer_is_unsupported():
    with pytest.raises(Unsupported, match="--tokenizer"):
        Case("name", "kind", Path("x.npz"), {}, {}).tokenizer_file()
