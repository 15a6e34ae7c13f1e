"""The picture of every schedule, planned and actual, and what never happened."""

import json

from pgolf.report.report import main
from pgolf.report.runs import read_run
from pgolf.report.settings import never_happened, settings

from .fake_runs import fake_run


def recorded(tmp_path, **columns):
    """A run of four steps that recorded its plan."""
    directory = fake_run(tmp_path / "run")
    fraction = [0.0, 0.25, 0.5, 0.75, 1.0]
    steady = {"momentum": [0.9] * 5, "batch_tokens": [512] * 5}
    moving = {"lr_scale": [1.0, 1.0, 1.0, 0.5, 0.0], "plan": ["plain"] * 2 + ["looped"] * 3} | columns
    planned = {"step": [0, 1, 2, 3, 4], "fraction": fraction, **steady, **moving}
    lines = [
        {"event": "step", "step": step + 1, "fraction": fraction[step]}
        | {name: values[step] for name, values in {**steady, **moving}.items()}
        for step in range(4)
    ]
    missed = ["momentum: the momentum ramp ends at step 9, but training ended at step 4"]
    lines.append({"event": "schedules", "planned": planned, "never_happened": missed})
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def test_what_moves_is_drawn_and_what_never_happened_is_told(tmp_path):
    directory = recorded(tmp_path, sequence_tokens=[16, 16, 64, 64, 64])
    run = read_run(directory)
    one = settings(run, tmp_path / "one.png")
    assert one is not None and one.read_bytes() == settings(run, tmp_path / "two.png").read_bytes()
    other = recorded(tmp_path / "other", sequence_tokens=[16] * 5)
    narrower = settings(read_run(other), tmp_path / "narrow.png")
    assert _width(narrower) < _width(one)  # a setting that stays has no panel
    assert never_happened(run) == ["momentum: the momentum ramp ends at step 9, but training ended at step 4"]
    main([str(directory), "--out", str(tmp_path / "out")])
    assert "Planned and never reached: momentum: the momentum ramp" in (tmp_path / "out" / "report.html").read_text()
    assert len(list((tmp_path / "out").glob("settings-*.png"))) == 1


def test_a_run_without_a_plan_has_no_picture(tmp_path):
    run = read_run(fake_run(tmp_path / "run"))
    assert settings(run, tmp_path / "none.png") is None and never_happened(run) == []


def _width(image) -> int:
    return int.from_bytes(image.read_bytes()[16:20], "big")
