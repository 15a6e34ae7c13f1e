"""Training with fused kernels: the same run but for roundings, and what keeps its plain operations is said."""

from functools import partial

import pytest
import torch

from pgolf.kernels.fused import choice
from pgolf.kernels.fused.kernels import UNFUSED
from pgolf.model.head import AsymmetricSoftCap
from pgolf.model.mlp import SwiGLU
from pgolf.train.fusing import put_to_use
from tests.support import tiny_model
from tests.train.small import Spoken, optimisers, train

pytest.importorskip("triton", reason="triton is not installed")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="interpreted, where there is no GPU")


def kernels(*names):
    return choice.select(list(names), torch.device("cpu"))[0]


def test_a_short_run_is_the_same_but_for_roundings(tmp_path):
    """Losses and averaged weights of steps in both plans. The interpreter is slow, so steps are few and small."""
    small = {"max_steps": 2, "batch_tokens": 64, "micro_batch_tokens": 64, "sequence_tokens": 32, "loop_at": 0.5}
    plain, _, before, _ = train(tmp_path / "plain", **small)
    console = Spoken()
    fused = kernels("mlp", "cross_entropy", "norm_rotary", "symmetric")
    weights, _, events, _ = train(tmp_path / "fused", fused=fused, console=console, **small)
    assert [event["train_loss"] for event in events] == pytest.approx([one["train_loss"] for one in before], rel=1e-5)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, plain[name], rtol=1e-3, atol=1e-4)
    assert not [one for one in console.said if "plain operations" in one]


def test_what_keeps_its_plain_operations_is_said():
    model = tiny_model(mlp=partial(SwiGLU, multiple=2.0), softcap=partial(AsymmetricSoftCap, cap=30.0))
    fused = kernels("mlp", "cross_entropy", "norm_rotary", "smear_norm")
    assert put_to_use(fused, model, optimisers(model)) == [
        "fused kernel mlp: in 0 of 4 MLPs; the others compute it by plain operations",
        "fused kernel smear_norm: in 0 of 1 places behind the embedding; the others compute it by plain operations",
        "fused kernel cross_entropy: in 0 of 1 softcaps; the others compute it by plain operations",
    ]


def test_without_kernels_nothing_is_said():
    model = tiny_model()
    assert put_to_use(UNFUSED, model, optimisers(model)) == []
