"""The published results: consistent figures, lineage, presets and parity said plainly."""

from pathlib import Path

import pytest

from pgolf.app.verbs.records import main
from pgolf.errors import ConfigError, UserError
from pgolf.files import read_json, write_json
from pgolf.interop.parity.kinds import KINDS, kind_of
from pgolf.report.catalogue import RECORDS_FILE, Proposal, load_catalogue
from pgolf.report.lineage import render_tree
from pgolf.report.presets import Preset, preset_directory, read_presets
from pgolf.report.records import FLAGS, LIMIT_BYTES, METRICS, Changes, render_proposal, render_record, render_table
from tests.support import GOLDEN

PRESETS = read_presets(preset_directory())


@pytest.fixture(scope="module")
def catalogue():
    return load_catalogue()


def test_every_record_is_whole(catalogue):
    names = [record.id for record in catalogue.records]
    assert len(names) == len(set(names)) > 30
    for record in catalogue.records:
        assert record.headline and record.metric in METRICS and set(record.flags) <= set(FLAGS)
        assert 1.0 < record.mean < 1.3
        assert (record.parent in names) != (record.base in catalogue.bases)
        assert record.parameters == 17_059_912 or 35_000_000 < record.parameters < 37_000_000
        assert record.artifact_bytes <= LIMIT_BYTES
        seeds = [run["seed"] for run in record.headline]
        assert len(seeds) == len(set(seeds)) or "same-seed" in record.flags


@pytest.mark.parametrize(
    ("name", "mean", "std", "n"),
    [
        ("lora_ttt", 1.19280, 0.00058, 4),
        ("1394", 1.08562, 0.00072, 5),
        ("1736", 1.06549, 0.00070, 3),
        ("1855", 1.06108, 0.00111, 3),
        ("1868", 1.06141, 0.00093, 3),
        ("1925", 1.06032, 0.00114, 3),
        ("2135", 1.05651, 0.00036, 3),
    ],
)
def test_published_figures(catalogue, name, mean, std, n):
    record = catalogue.find(name)
    assert (record.mean, record.std) == pytest.approx((mean, std), abs=5e-6)
    assert len(record.headline) == n


def test_loss_and_bits_per_byte_agree_within_a_record(catalogue):
    for record in catalogue.records:
        if "log-integrity" in record.flags:
            continue
        # the logs of lora_ttt give four decimals
        tolerance = 1e-4 if record.id == "lora_ttt" else 2e-6
        ratios = [run["loss"] / run["bpb"] for run in record.headline if "loss" in run]
        assert max(ratios, default=1) == pytest.approx(min(ratios, default=1), rel=tolerance)


@pytest.mark.parametrize("name", ["1736", "pr1736", "#1736", "PR1736"])
def test_names_of_one_record(catalogue, name):
    record = catalogue.find(name)
    assert record.id == "pr1736" and record.title == "PR 1736"
    assert catalogue.lineage(record) == ["pr1530", "pr1626", "pr1736"]


def test_a_record_without_a_number(catalogue):
    record = catalogue.find("naive")
    assert record.title == "naive" and record.std is None
    assert catalogue.lineage(catalogue.find("lora_ttt")) == ["naive", "lora_ttt"]


def test_an_unknown_record_is_a_sentence(catalogue):
    with pytest.raises(UserError, match="there is no record 'pr1'; known: naive, lora_ttt, pr1394"):
        catalogue.find("pr1")


def test_every_preset_is_a_record_and_says_its_figures(catalogue):
    for name, preset in PRESETS.items():
        record = catalogue.published(name)
        with_presets = [one for one in catalogue.lineage(record)[:-1] if one in PRESETS]
        assert preset.parent == (with_presets[-1] if with_presets else None), name
        head = (preset_directory() / f"{name}.yaml").read_text("utf-8").splitlines()
        assert head[0] == "# @package _global_"
        if isinstance(record, Proposal):
            assert head[2] == f"# Proposed, without a score; {record.parameters:,} parameters.", name
            continue
        std = f", std {record.std:.5f}" if record.std is not None else ""
        assert head[2] == (
            f"# Published: {record.mean:.5f} bits per byte{std}, n={len(record.headline)}; "
            f"{record.parameters:,} parameters; at most {record.artifact_bytes:,} bytes."
        ), name


def test_mechanisms_that_are_not_here_are_named(catalogue):
    tilt = "n-gram tilt"
    for name in ("pr1514", "pr2130", "pr2135"):
        assert tilt in render_record(catalogue, catalogue.find(name), PRESETS)
    text = render_record(catalogue, catalogue.find("pr1736"), PRESETS)
    assert "missing        the fused kernel of the MLP" in text and tilt not in text
    assert "missing" not in render_record(catalogue, catalogue.find("pr1394"), PRESETS)


def test_parity_names_kinds_that_have_a_runner_and_cases(catalogue):
    names = {record.id for record in catalogue.records}
    found = sorted(path.name for path in GOLDEN.glob("*"))
    for evidence in catalogue.parity:
        assert kind_of(evidence.cases) or any(kind.startswith(evidence.cases) for kind in KINDS), evidence.cases
        assert set(evidence.records) <= names
        if found:
            assert any(name.startswith(evidence.cases) for name in found), evidence.cases


def test_table_says_which_presets_exist_what_they_lack_and_what_is_checked(catalogue):
    presets = {
        "pr1736": Preset("pr1736", None, ("this.", "that."), ()),
        "pr1769": Preset("pr1769", None, (), ("another.",)),
        "mine": Preset("mine", None, (), ()),
    }
    text = render_table(catalogue, presets)
    rows = {line.split()[0]: line for line in text.splitlines() if line}
    assert "all but 2" in rows["pr1736"] and "1.06549" in rows["pr1736"] and "0.00070" in rows["pr1736"]
    assert " all " in rows["pr1769"] and " all" not in rows["pr1855"]
    assert "(pr1736)" in rows["pr1787"]
    assert text.endswith("Other presets: mine.")
    first = text.splitlines()[2]
    assert first.startswith("pr2018") and "overlap" in first


def test_evidence_is_the_records_own_or_that_of_its_nearest_ancestor(catalogue):
    own = render_record(catalogue, catalogue.find("1736"), PRESETS)
    assert "parity         forward pass: losses and gradients" in own and "(model_1736_*)" in own
    assert "(model_1736_*) [of pr1736]" in render_record(catalogue, catalogue.find("1787"), PRESETS)
    assert catalogue.nearest_evidence(catalogue.find("2135")) == "pr1736"


def test_detail_has_delta_lineage_changes_and_seeds(catalogue):
    changes = Changes("pr2130", {"quant.calibration_batches": ["16", "32"]})
    text = render_record(catalogue, catalogue.find("pr2135"), {}, changes)
    assert "pr1530 -> pr1626 -> pr1736 -> pr1797 -> pr2130 -> pr2135" in text
    assert "published settings, changed from PR 2130:\n  gptq_calibration_batches = 32" in text
    assert "changed from experiment=pr2130:\n  quant.calibration_batches: 16 -> 32" in text
    assert "none in this version" in text
    assert "1.05679" in text and "15,942,822" in text


def test_every_record_renders(catalogue):
    for record in catalogue.records:
        assert record.title in render_record(catalogue, record, PRESETS)


def test_a_proposal_has_no_figures_and_cannot_have_any(catalogue, tmp_path):
    proposals = [one.id for one in catalogue.proposals]
    assert {"pr2059_baseline", "pr2059_all"} <= set(proposals)
    with pytest.raises(UserError, match="PR 2059 \\(all\\) is a proposal"):
        catalogue.find("pr2059_all")
    text = render_proposal(catalogue, catalogue.published("2059_all"), PRESETS)
    assert "bits per byte  none" in text and "naive -> lora_ttt -> pr2059_baseline -> pr2059_jepa -> pr2059_all" in text
    assert "1597, 2584, 4181, 6765, 10946" in text and "0.1928" not in text
    (line,) = [line for line in render_tree(catalogue, {}.__contains__).splitlines() if "pr2059_all" in line]
    assert "no score" in line and not any(char.isdigit() for char in line.split("no score")[1])
    content = read_json(RECORDS_FILE)
    content["proposals"][0]["bpb"] = 1.0
    write_json(tmp_path / "records.json", content)
    with pytest.raises(TypeError, match="bpb"):
        load_catalogue(tmp_path / "records.json")


def test_the_verb_lists_all(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in PRESETS) and "Other presets" not in shown


def test_the_verb_shows_what_a_preset_changes(capsys):
    assert main(["2135"]) == 0
    shown = capsys.readouterr().out
    assert "experiment=pr2135, changed from experiment=pr2130:\n  quant.calibration_batches: 16 -> 32\n\n" in shown
    assert main(["pr2018"]) == 0
    assert "preset         none in this version" in capsys.readouterr().out


def test_own_presets_and_their_problems(tmp_path: Path, capsys):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ndefaults: [pr1736]\n")
    assert main(["--config-dir", str(tmp_path)]) == 0
    assert "Other presets: mine." in capsys.readouterr().out
    (tmp_path / "experiment" / "pr2007.yaml").write_text("defaults: [override /ttt: nothing]\n")
    with pytest.raises(ConfigError, match="pr2007"):
        main(["pr2007", "--config-dir", str(tmp_path)])
    with pytest.raises(UserError, match="one record at a time"):
        main(["pr1727", "pr1736"])


def test_help_names_the_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0 and "usage: pgolf records" in capsys.readouterr().out


def test_the_tree_has_every_record_once_below_its_parent(catalogue):
    text = render_tree(catalogue, {"pr1736"}.__contains__)
    lines = text.splitlines()
    names = [line.strip("│├└─ ").split()[0].rstrip("*") for line in lines]
    assert sorted(names) == sorted(one.id for one in catalogue.entries)
    depth = {name: len(line) - len(line.lstrip("│├└─ ")) for name, line in zip(names, lines, strict=True)}
    assert all(depth[one.id] == (depth[one.parent] + 3 if one.parent else 0) for one in catalogue.entries)
    (line,) = [line for line in lines if "pr1736*" in line]
    assert "1.06549" in line and "-0.00644" in line and text.count("*") == 1
