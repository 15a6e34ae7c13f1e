"""`pgolf audit`: JSON beside the table, its defaults, and the self-test's words and exit status."""

import json
from pathlib import Path
from typing import Any

import pytest

from pgolf.app.verbs import audit
from pgolf.errors import ConfigError


def test_json_holds_what_the_table_shows(conf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "audit.json"
    assert audit.main(["--config-path", str(conf), "audit.probes=13", "--json", str(path)]) == 1
    written = json.loads(path.read_text())
    out = capsys.readouterr().out
    assert written["verdict"] == "fail" and "Validity: fail" in out and f"written to {path}" in out
    assert "no run given" not in out  # another configuration has no such groups


@pytest.mark.parametrize(("verdict", "status"), [("pass", 0), ("fail", 1)])
def test_the_self_test_is_a_table_and_an_exit_status(
    verdict: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    specimens = [
        {"name": "rescoring", "expected": "C4a", "caught": ["C4a"] if status == 0 else ["C1a"], "right": status == 0},
        {"name": "plain", "expected": "", "caught": [], "right": True},
    ]

    def tried(workplace: Path, console: Any) -> dict[str, Any]:
        assert workplace.is_dir()
        return {"verdict": verdict, "specimens": specimens}

    monkeypatch.setattr("pgolf.audit.selftest.self_test", tried)
    assert audit.main(["--self-test"]) == status
    out = capsys.readouterr().out
    assert f"Self-test of the audit: {verdict}" in out and "none: it is legal" in out and "rescoring" in out


def test_the_self_test_takes_no_overrides() -> None:
    with pytest.raises(ConfigError, match="takes no overrides"):
        audit.main(["--self-test", "ttt=none"])
