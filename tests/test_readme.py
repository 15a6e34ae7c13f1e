"""The README's worked example, carried out step by step in a copy of the project."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"`([\w/.]+)`:\n\n```\w+\n(.*?)```", re.S)


def test_the_worked_example_does_what_the_readme_says(tmp_path):
    for folder in ("pgolf", "conf"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    blocks = dict(BLOCK.findall((ROOT / "README.md").read_text("utf-8")))
    assert len(blocks) == 3
    for name, text in blocks.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    test = next(name for name in blocks if name.startswith("tests/"))
    assert "1 passed" in run("-m", "pytest", "-q", "-p", "no:cacheprovider", test)
    assert "blocks.0.attn.gate.weight" in run("-m", "pgolf", "inspect", "model/attention/gate=gain")
    assert "blocks.0.attn.gate.weight" not in run("-m", "pgolf", "inspect")


def test_the_commands_of_the_readme_exist():
    text = (ROOT / "README.md").read_text("utf-8")
    targets = set(re.findall(r"^make (\w+)", text, re.M))
    assert targets == {"demo", "test"}
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)
    for image in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (ROOT / image).is_file()
