"""What ran: the hashes and versions that run.json keeps."""

import hashlib
import platform
import subprocess
from pathlib import Path
from typing import Any

from pgolf.digest import config_hash, digest, group_digest

PACKAGE = Path(__file__).resolve().parent.parent


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """The identity of a run before it starts; the stages add the data digest and their times."""
    import torch

    return {
        "name": config["name"],
        "seed": config["seed"],
        "digest": digest(config),
        "group_digest": group_digest(config),
        "config_hash": config_hash(config),
        "code_hash": code_hash(),
        "git": git_state(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "cuda": torch.version.cuda,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def code_hash(package: Path = PACKAGE) -> str:
    """SHA-256 over the names and contents of every module of pgolf."""
    total = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        total.update(path.relative_to(package).as_posix().encode() + b"\0")
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def git_state(checkout: Path = PACKAGE.parent) -> dict[str, Any] | None:
    """Commit and dirty flag of the checkout that pgolf runs from; None outside one."""
    if not (checkout / ".git").exists():
        return None
    try:
        commit = _git(checkout, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(checkout, "status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(checkout: Path, *arguments: str) -> str:
    command = ["git", "-C", str(checkout), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
