"""The n-gram bias: counts, smoothed, times the model's doubt."""

import numpy as np
import pytest
import torch

from pgolf.ttt.experts.ngram_bias import NgramBias
from tests.ttt.experts.examples import mixed


def test_counts_weigh_by_the_models_doubt():
    expert = NgramBias(contexts=[1], strength=2.0, smoothing=1.0)
    tokens = [1, 5, 6, 5, 6, 5, 7, 5, 6]
    uniform = torch.full((len(tokens) - 1, 16), -np.log(16.0)).float()
    found = mixed(expert, tokens, uniform)[-1].double()  # after 5: 6 twice, 7 once
    weights = torch.ones(16, dtype=torch.float64)
    weights[6], weights[7] = 3.0**2, 2.0**2
    torch.testing.assert_close(found, (weights / weights.sum()).log(), rtol=1e-5, atol=1e-5)
    sure = torch.full((len(tokens) - 1, 16), -200.0)
    sure[:, 3] = 0.0
    torch.testing.assert_close(mixed(expert, tokens, sure), sure)


def test_the_gate_is_the_share_of_the_largest_entropy():
    """Logits + gate * bias, normalised: gate = clip(H / ln V, 0, 1) of the model's distribution at that position."""
    expert = NgramBias(contexts=[1], strength=1.3, smoothing=0.5)
    tokens, size = [1, 5, 6, 5, 6, 5, 7, 5, 6], 16
    logits = 30 * torch.tanh(torch.randn(len(tokens) - 1, size, generator=torch.Generator().manual_seed(3)) / 10)
    log_probs = torch.log_softmax(logits, dim=-1)
    gate = float(-(log_probs[-1].exp() * log_probs[-1]).sum()) / np.log(size)
    assert 0.1 < gate < 0.95
    bias = torch.zeros(size)
    bias[6], bias[7] = np.log(1 + 2 / 0.5), np.log(1 + 1 / 0.5)
    expected = torch.log_softmax(logits[-1] + 1.3 * gate * bias, dim=-1)
    torch.testing.assert_close(mixed(expert, tokens, log_probs)[-1], expected, rtol=1e-5, atol=1e-5)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="at least 1 token"):
        NgramBias(contexts=[0], strength=1.0)
    with pytest.raises(ValueError, match="smoothing=0.0 above 0"):
        NgramBias(contexts=[2], strength=1.0, smoothing=0.0)
