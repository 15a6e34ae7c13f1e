"""Shared by all tests."""

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
# a shell ignores SIGINT for what it runs in the background, and children inherit that; tests of interruptions need it
signal.signal(signal.SIGINT, signal.default_int_handler)

# how long an example takes depends on what else the machine does
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def _no_network_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reaches Weights & Biases over the network."""
    monkeypatch.setenv("WANDB_MODE", "offline")


def _interpret_kernels() -> None:
    """Triton reads the variable when it is first imported; with a GPU its kernels are compiled."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")


_interpret_kernels()
