"""What a run works with."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from pgolf import workshop
from pgolf.errors import UserError
from pgolf.model.precision import Precision
from pgolf.quant.code import RUN_ENTRIES, package_root, reachable_modules
from pgolf.ttt.forward import log_probs_at
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


@pytest.mark.parametrize(("begun", "own"), [(["mlp"], None), (None, ["mlp"])])
def test_kernels_that_training_used_count_as_code(begun, own):
    """Of this run, and of the run that an evaluation starts from; nothing of those that were not used."""
    stages = [{} if used is None else {"train": {"result": {"fused": used}}} for used in (begun, own)]
    shop = SimpleNamespace(_begun={"stages": stages[0]}, record=SimpleNamespace(data={"stages": stages[1]}))
    modules = workshop.Workshop.kernel_modules.fget(shop)
    assert modules == ["pgolf.kernels.fused.mlp"]
    counted, without = (reachable_modules(package_root(), [*RUN_ENTRIES, *more]) for more in (modules, []))
    assert counted.keys() - without.keys() == {"pgolf.kernels.fused.mlp", "pgolf.kernels.fused.launch"}


def test_a_run_from_before_there_were_kernels_used_none():
    shop = SimpleNamespace(_begun={}, record=SimpleNamespace(data={"stages": {"train": {"result": {}}}}))
    assert workshop.Workshop.kernel_modules.fget(shop) == []


def test_a_compiler_that_fails_is_refused_on_every_process_and_benches_get_the_one_forward(monkeypatch):
    said = SimpleNamespace(device=torch.device("cpu"), gather=lambda mine: [mine, "RuntimeError: rank 1 has none"])
    with pytest.raises(UserError, match="compile_scoring=true, but torch.compile fails here: RuntimeError: rank 1"):
        workshop.scoring_forward(SimpleNamespace(compile_scoring=True), said)
    assert workshop.scoring_forward(SimpleNamespace(compile_scoring=False), said) is log_probs_at

    made = SimpleNamespace(recipe=SimpleNamespace(seed=3), attention=None, console=None, forward="compiled")
    made.record = SimpleNamespace(log=print)
    assert workshop.Workshop.bench(made, "final").forward == "compiled"
