"""Shared by all tests."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _no_network_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reaches Weights & Biases over the network."""
    monkeypatch.setenv("WANDB_MODE", "offline")
