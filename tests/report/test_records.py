"""The published results: consistent figures, lineage, presets and parity said plainly."""

import pytest

from pgolf.errors import UserError
from pgolf.report import records
from pgolf.report.records import FLAGS, LIMIT_BYTES, METRICS, load_catalogue, main


@pytest.fixture(scope="module")
def catalogue():
    return load_catalogue()


def test_every_record_is_whole(catalogue):
    numbers = [record.pr for record in catalogue.records]
    assert len(numbers) == len(set(numbers)) > 30
    for record in catalogue.records:
        assert record.headline and record.metric in METRICS and set(record.flags) <= set(FLAGS)
        assert 1.0 < record.mean < 1.1
        assert record.parent is None or record.parent in numbers
        assert 35_000_000 < record.parameters < 37_000_000
        assert record.artifact_bytes <= LIMIT_BYTES
        seeds = [run["seed"] for run in record.headline]
        assert len(seeds) == len(set(seeds))


@pytest.mark.parametrize(
    ("pr", "mean", "std", "n"),
    [
        (1394, 1.08562, 0.00072, 5),
        (1736, 1.06549, 0.00070, 3),
        (1855, 1.06108, 0.00111, 3),
        (1868, 1.06141, 0.00093, 3),
        (1925, 1.06032, 0.00114, 3),
        (2135, 1.05651, 0.00036, 3),
    ],
)
def test_published_figures(catalogue, pr, mean, std, n):
    record = catalogue.find(str(pr))
    assert (record.mean, record.std) == pytest.approx((mean, std), abs=5e-6)
    assert len(record.headline) == n


def test_loss_and_bits_per_byte_agree_within_a_record(catalogue):
    for record in catalogue.records:
        if "log-integrity" in record.flags:
            continue
        ratios = [run["loss"] / run["bpb"] for run in record.headline if "loss" in run]
        assert max(ratios, default=1) == pytest.approx(min(ratios, default=1), rel=2e-6)


@pytest.mark.parametrize("name", ["1736", "pr1736", "#1736", "PR1736"])
def test_names_of_one_record(catalogue, name):
    record = catalogue.find(name)
    assert record.pr == 1736 and record.preset == "pr1736"
    assert catalogue.lineage(record) == [1530, 1626, 1736]


def test_an_unknown_record_is_a_sentence(catalogue):
    with pytest.raises(UserError, match="there is no record 'pr1'; known: pr1394"):
        catalogue.find("pr1")


def test_table_says_which_presets_exist_and_that_none_is_checked(tmp_path, capsys):
    for name in ("pr1736.yaml", "none.yaml", "mine.yaml", "notes.txt"):
        (tmp_path / name).touch()
    assert main(["--presets", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    row = next(line for line in text.splitlines() if line.startswith("1736 "))
    assert "pr1736" in row and "1.06549" in row and "0.00070" in row
    row = next(line for line in text.splitlines() if line.startswith("1855 "))
    assert "pr1855" not in row
    assert "Presets in this version: pr1736." in text
    assert "Other presets: mine." in text
    assert "No record is checked for parity" in text
    first = text.splitlines()[2:]
    assert first[0].startswith("2018") and "overlap" in first[0]


def test_parity_evidence_is_shown(catalogue):
    evidence = {"pr1736": ["forward, 1e-6, tests/parity/test_pr1736.py"]}
    checked = records.Catalogue(catalogue.base, evidence, catalogue.records)
    assert "published script: pr1736." in records.render_table(checked, {"pr1736"})
    text = records.render_record(checked, checked.find("1736"), {"pr1736"})
    assert "tests/parity/test_pr1736.py" in text and "experiment=pr1736" in text


def test_detail_has_delta_lineage_and_seeds(tmp_path, capsys):
    assert main(["pr2135", "--presets", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "1530 -> 1626 -> 1736 -> 1797 -> 2130 -> 2135" in text
    assert "changed from PR 2130:\n  gptq_calibration_batches = 32" in text
    assert "none in this version" in text and "not checked in this version" in text
    assert "1.05679" in text and "15,942,822" in text


def test_every_record_renders(catalogue):
    for record in catalogue.records:
        assert str(record.pr) in records.render_record(catalogue, record, set())


def test_a_missing_preset_folder_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="is not a folder of presets"):
        main(["--presets", str(tmp_path / "nowhere")])


def test_the_presets_of_this_version_are_found(capsys):
    assert records.preset_directory().name == "experiment"
    assert main([]) == 0
    assert "Presets in this version" in capsys.readouterr().out


def test_help_names_the_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0 and "usage: pgolf records" in capsys.readouterr().out
