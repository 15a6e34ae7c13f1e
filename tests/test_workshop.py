"""What a run works with."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from pgolf import workshop
from pgolf.model.precision import Precision
from tests.support import tiny_model


@pytest.mark.parametrize(
    ("autocast", "device", "dtype"),
    [("bfloat16", "cuda", torch.bfloat16), (None, "cuda", torch.float32), ("bfloat16", "cpu", torch.float32)],
)
def test_attention_is_tried_as_the_model_will_use_it(monkeypatch, autocast, device, dtype):
    asked = []
    monkeypatch.setattr(workshop, "select", lambda *arguments: asked.append(arguments) or ("sdpa", None))
    precision = Precision(parameters={}, autocast=autocast)
    recipe = SimpleNamespace(
        kernels="auto",
        seed=3,
        data=SimpleNamespace(vocab_size=64),
        model=lambda vocab_size, seed: partial(tiny_model, precision=precision)(seed, vocab_size),
    )
    workshop.chosen_attention(recipe, torch.device(device))
    assert asked == [("auto", torch.device(device), dtype, (4, 2, 8))]
