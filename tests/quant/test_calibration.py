"""Calibration text: what it is, which process reads it, and that the number of processes does not matter."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pgolf.console import Silent
from pgolf.data.loaders import BatchShape, ShuffledSequenceLoader
from pgolf.distributed import Group
from pgolf.errors import UserError
from pgolf.kernels.attend import sdpa
from pgolf.model.context import Context
from pgolf.model.gpt import GPT
from pgolf.model.head import UntiedHead
from pgolf.quant.calibration import Ground, RandomTokens, SelfGenerated, Text, TrainingText, calibrate
from pgolf.quant.hessian import Calibration, collect_hessians
from tests.support import ALONE, FakeDataset, run_ranks, tiny_model

SHAPE = BatchShape(64, 16)
NAMES = ["blocks.0.attn.c_q.weight", "blocks.0.attn.c_k.weight", "blocks.2.mlp.proj.weight", "tok_emb.weight"]
BATCHES = 3
"""Not a multiple of two processes."""


def texts() -> dict[str, Text]:
    """One of each."""
    return {
        "train": TrainingText(),
        "leader": TrainingText(ranks="leader"),
        "random": RandomTokens(in_training_budget=False),
        "self": SelfGenerated(sequences=5, rows=2, temperature=0.8, in_training_budget=False),
    }


def ground(directory: Path, group: Group = ALONE, model: GPT | None = None, seed: int = 11) -> Ground:
    """Four shards of training text, and a model that predicts something."""
    folder = directory / f"rank{group.rank}"
    folder.mkdir(exist_ok=True)
    files = FakeDataset(folder, num_shards=4, shard_tokens=1000).train_files
    return Ground(model or tiny_model(scramble=0.2), sdpa, files, SHAPE, seed, group, Silent())


def gathered(text: Text, directory: Path, group: Group = ALONE, **changes: Any) -> dict[str, Calibration]:
    """Hessians of NAMES, the moments of one of them too."""
    return calibrate(text, BATCHES, NAMES, NAMES[2:3], ground(directory, group, **changes))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[dict[str, Any]]]:
    directory = tmp_path_factory.mktemp("ranks")
    run_ranks(Path(__file__).parent / "calibration_ranks.py", 2, directory)
    found, everyone = (torch.load(directory / name, weights_only=False) for name in ("found.pt", "everyone.pt"))
    return directory, found, everyone


@pytest.mark.parametrize("name", ["train", "random", "self"])
def test_two_processes_share_the_batches_and_find_what_one_does(two_ranks: Any, name: str, tmp_path: Path) -> None:
    _, found, everyone = two_ranks
    alone = gathered(texts()[name], tmp_path)
    for key, one in alone.items():
        torch.testing.assert_close(found[name][key].hessian, one.hessian, rtol=1e-4, atol=1e-4)
        assert found[name][key].inputs == one.inputs
        assert torch.equal(everyone[0][name][key], everyone[1][name][key])  # the same bits on every process
    moments = found[name][NAMES[2]].row_moments
    assert moments is not None and alone[NAMES[2]].row_moments is not None
    torch.testing.assert_close(moments, alone[NAMES[2]].row_moments, rtol=1e-3, atol=1e-9)


def test_the_leader_alone_reads_its_own_shards(two_ranks: Any, tmp_path: Path) -> None:
    _, found, everyone = two_ranks
    assert everyone[1]["leader"] == {}
    there = ground(tmp_path)
    loader = ShuffledSequenceLoader(there.train_files, 2, 0, SHAPE)
    batches = [loader.next() for _ in range(BATCHES)]
    site = {NAMES[0]: there.model.calibration_sites()[NAMES[0]]}
    expected = collect_hessians(site, [lambda one=one: there.model(one.inputs) for one in batches])
    torch.testing.assert_close(found["leader"][NAMES[0]].hessian, expected[NAMES[0]].hessian, rtol=1e-5, atol=1e-4)


def test_alone_the_policies_agree_to_the_last_bit(tmp_path: Path) -> None:
    every, leader = (gathered(text, tmp_path) for text in (TrainingText(), TrainingText(ranks="leader")))
    assert all(torch.equal(every[name].hessian, leader[name].hessian) for name in NAMES)


def test_training_batches_are_those_of_the_loader_and_moments_come_from_later_ones(tmp_path: Path) -> None:
    there = ground(tmp_path)
    give, loader = TrainingText().open(there), ShuffledSequenceLoader(there.train_files, 1, 0, SHAPE)
    expected = [loader.next() for _ in range(6)]
    for number in (0, 2, 5):
        assert torch.equal(give(number).inputs, expected[number].inputs)


def test_moments_are_those_of_the_models_own_predictions(tmp_path: Path) -> None:
    """At the logits the mean square of the gradient is p (1 - p), whatever the text's own tokens are."""
    there = ground(tmp_path, model=tiny_model(scramble=0.2, head=UntiedHead))
    (name,) = [name for name in there.model.calibration_sites() if "head" in name]
    found = calibrate(TrainingText(), 150, [name], [name], there)[name].row_moments
    assert found is not None
    give, context = TrainingText().open(there), Context(sdpa)
    batches = [give(number) for number in range(20)]
    with torch.no_grad():
        logits = [there.model.logits(there.model(one.inputs, context), context) for one in batches]
    chances = torch.cat(logits).softmax(dim=-1)
    expected = (chances * (1 - chances)).mean(dim=(0, 1))
    assert torch.corrcoef(torch.stack([found, expected]))[0, 1] > 0.8
    torch.testing.assert_close(found.sum() * 64**2, expected.sum(), rtol=0.15, atol=0)


def test_what_the_model_writes_is_its_own_and_the_same_again(tmp_path: Path) -> None:
    text = SelfGenerated(sequences=4, rows=2, temperature=0.8, in_training_budget=False)
    first, again = (text.open(ground(tmp_path))(1) for _ in range(2))
    assert torch.equal(first.inputs, again.inputs) and first.inputs.shape == (2, 15)
    assert torch.equal(first.inputs[:, 1:], first.targets[:, :-1])
    other = text.open(ground(tmp_path, seed=12))(1)
    assert not torch.equal(first.inputs, other.inputs)
    cold = SelfGenerated(sequences=4, rows=2, temperature=1e-4, in_training_budget=False).open(ground(tmp_path))(0)
    model = tiny_model(scramble=0.2)
    best = model.logits(model(cold.inputs)).argmax(dim=-1)
    assert torch.equal(best, cold.targets)


def test_self_generated_text_has_its_own_number_of_batches(tmp_path: Path) -> None:
    text = SelfGenerated(sequences=5, rows=2, temperature=0.8, in_training_budget=True)
    assert (text.batches(99), text.phase) == (3, "calibrate")
    give = text.open(ground(tmp_path))
    assert give(0) is give(3)


def test_random_tokens_use_the_whole_vocabulary(tmp_path: Path) -> None:
    text = RandomTokens(in_training_budget=False)
    batch = text.open(ground(tmp_path))(0)
    assert batch.inputs.shape == (4, 16) and len(batch.inputs.unique()) > 30
    assert text.phase == "generate"


def test_texts_differ_in_what_they_calibrate(tmp_path: Path) -> None:
    hessians = [gathered(text, tmp_path)[NAMES[2]].hessian for name, text in texts().items() if name != "leader"]
    for index, one in enumerate(hessians):
        for other in hessians[index + 1 :]:
            assert not torch.allclose(one / one.trace(), other / other.trace(), rtol=1e-2)


def test_a_table_that_is_looked_up_has_the_identity(tmp_path: Path) -> None:
    known = gathered(TrainingText(), tmp_path, model=tiny_model(scramble=0.2, head=UntiedHead))
    assert torch.equal(known["tok_emb.weight"].hessian, torch.eye(32))


def test_nothing_to_calibrate_reads_nothing(tmp_path: Path) -> None:
    class Never(TrainingText):
        def open(self, ground: Ground) -> Any:
            raise AssertionError

    assert calibrate(Never(), 3, [], [], ground(tmp_path)) == {}


def test_no_batch_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"quant\.calibration_batches must be 1"):
        calibrate(TrainingText(), 0, NAMES[:1], [], ground(tmp_path))


@pytest.mark.parametrize("wrong", [{"sequences": 0}, {"rows": 0}, {"temperature": 0.0}, {"temperature": float("nan")}])
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    right: dict[str, Any] = {"sequences": 2, "rows": 2, "temperature": 1.0, "in_training_budget": False}
    with pytest.raises(ValueError, match="must be at least 1"):
        SelfGenerated(**{**right, **wrong})
