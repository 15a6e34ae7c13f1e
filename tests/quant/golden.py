"""Reference numbers of the public record scripts.

A small subset is committed; the full files are used where a folder `shared/golden` lies in or
beside the checkout.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
COMMITTED = CHECKOUT / "tests" / "golden" / "quant"


def load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and the description of one file."""
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files if key != "meta_json"}
        return arrays, json.loads(str(file["meta_json"]))


def full(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """One file of the full reference data; where it is missing the test is skipped, saying so."""
    for folder in (CHECKOUT / "shared", CHECKOUT.parent / "shared"):
        path = folder / "golden" / "open" / name
        if path.is_file():
            return load(path)
    pytest.skip(f"the full reference data (shared/golden/open/{name}) is not beside this checkout")
