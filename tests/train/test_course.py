"""Stages, schedules on one clock, what was planned and what came of it."""

from functools import partial

import numpy as np
import pytest
import torch

from pgolf.data.loaders import Batch, DocumentPackingLoader, SequentialLoader, ShuffledSequenceLoader
from pgolf.errors import UserError
from pgolf.kernels.packing import build_cu_seqlens
from pgolf.optim.averaging import ExponentialAverage, LatestSnapshots, SeveralDecays, WarmdownAverage
from pgolf.optim.clip import LocalNorm
from pgolf.optim.schedule import Position, Stages, StepWarmdown, Taper
from pgolf.train.batches import Taken, cut
from pgolf.train.loop import Trainer
from pgolf.train.positions import position_of
from tests.train.small import SETTINGS, STAGED, Spoken, losses, train

GROWING = Stages(stages=[(16, 0.4), (64, 1.0)])


def rows(tokens: int) -> torch.Tensor:
    return torch.arange(tokens)[None]


def test_documents_are_cut_from_their_own_start_as_the_loader_would():
    starts, total = np.array([0, 5, 60]), 100
    whole = Batch(rows(total), rows(total) + 1, build_cu_seqlens(starts, total, 0, 8))
    for length in (7, 16, 100):
        got = cut(whole, length, bucket=8)
        assert torch.equal(got.cu_seqlens, build_cu_seqlens(starts, total, length, 8))
        assert torch.equal(got.inputs, whole.inputs) and torch.equal(got.targets, whole.targets)


def test_rows_are_cut_into_equal_parts():
    batch = Batch(rows(128).view(2, 64), rows(128).view(2, 64) + 1, None)
    got = cut(batch, 16)
    assert got.inputs.shape == (8, 16) and torch.equal(got.targets, got.inputs + 1)
    assert torch.equal(got.inputs.flatten(), batch.inputs.flatten())


@pytest.mark.parametrize("loader", [DocumentPackingLoader, ShuffledSequenceLoader, SequentialLoader])
def test_a_longer_context_loses_no_batch_that_was_drawn_ahead(tmp_path, monkeypatch, loader):
    """The tokens of every step are those of a run whose sequences are long from the beginning."""
    seen = {}

    class Watched(Taken):
        def next(self):
            batch = super().next()
            seen[name].append(batch)
            return batch

    monkeypatch.setattr("pgolf.train.steps.Taken", Watched)
    for name, context in (("long", None), ("growing", GROWING)):
        seen[name] = []
        _, _, events, _ = train(tmp_path, loader=loader, max_steps=10, context=context, prefetch_batches=5)
    assert [event["sequence_tokens"] for event in events] == [16] * 5 + [64] * 5  # a stage holds at its own end
    for short, long in zip(seen["growing"], seen["long"], strict=True):
        assert torch.equal(short.inputs.flatten(), long.inputs.flatten())
        assert torch.equal(short.targets.flatten(), long.targets.flatten())
    if loader is DocumentPackingLoader:
        longest = [int(batch.cu_seqlens.diff().max()) for batch in seen["growing"]]
        assert max(longest[:10]) == 16 and max(longest[10:]) > 16
        assert torch.equal(seen["growing"][-1].cu_seqlens, seen["long"][-1].cu_seqlens)
    else:
        assert [batch.inputs.shape[1] for batch in seen["growing"]] == [16] * 10 + [64] * 10


def test_learning_rates_rise_anew_after_a_longer_context(tmp_path):
    _, progress, events, _ = train(tmp_path, max_steps=10, context=GROWING, rewarmup_steps=3)
    plain = [SETTINGS["schedule"].at(Position(step, step / 10)) for step in range(10)]
    rising = [1.0] * 5 + [1 / 3, 2 / 3, 1.0, 1.0, 1.0]
    assert [event["lr_scale"] for event in events] == pytest.approx([a * b for a, b in zip(plain, rising, strict=True)])
    assert progress.changed_at == 5


def test_batches_grow(tmp_path):
    _, progress, events, _ = train(tmp_path, max_steps=6, **STAGED)
    assert [event["batch_tokens"] for event in events] == [1024] * 4 + [2048] * 2
    assert progress.tokens == 4 * 1024 + 2 * 2048 == events[-1]["tokens"]
    assert Trainer(**{**SETTINGS, **STAGED}).micro_steps(2) == {1024: 2, 2048: 4}
    with pytest.raises(UserError, match="4 micro-batches a step cannot be shared by 8"):
        Trainer(**{**SETTINGS, **STAGED}).micro_steps(8)


def test_the_weight_decay_of_matrices_tapers(tmp_path):
    _, _, events, _ = train(tmp_path, max_steps=10, weight_decay=Taper(start=0.5, final=0.0))
    decays = [event["weight_decay_scale"] for event in events]
    assert decays == pytest.approx([1.0] * 6 + [0.8, 0.6, 0.4, 0.2])


def test_what_was_planned_and_what_never_happened_is_recorded(tmp_path):
    found, console = [], Spoken()
    late = StepWarmdown(steps=2, max_steps=10, max_seconds=None)
    changes = {"max_steps": 4, "schedule": late, "context": GROWING}
    _, _, events, _ = train(tmp_path, on=found.append, console=console, **changes)
    (record,) = [event for event in found if event["event"] == "schedules"]
    planned = record["planned"]
    assert set(planned) >= {"step", "fraction", "seconds", "lr_scale", "momentum", "plan", "sequence_tokens"}
    by_step = {step: index for index, step in reversed(list(enumerate(planned["step"])))}
    for event in events:
        index = by_step[event["step"] - 1]
        assert planned["momentum"][index] == event["momentum"] and planned["plan"][index] == event["plan"]
    assert record["never_happened"] == [
        "lr_scale: the warmdown starts at step 8, but training ended at step 4",
        "momentum: the momentum ramp ends at step 5, but training ended at step 4",
    ]
    assert f"note: {record['never_happened'][0]}" in console.said


def test_local_clipping_of_one_rank_is_global_clipping(tmp_path):
    _, _, one, _ = train(tmp_path, max_steps=5)
    _, _, other, _ = train(tmp_path, max_steps=5, clip=LocalNorm(norm=1.0))
    assert losses(one) == losses(other)


def test_the_best_of_several_averages_is_chosen_by_text_that_comes_next(tmp_path):
    found, console, several = [], Spoken(), partial(SeveralDecays, decays=[0.5, 0.9999])
    averaged, _, _, model = train(tmp_path, averaging=several, on=found.append, console=console, max_steps=12)
    (record,) = [event for event in found if event["event"] == "averages"]
    assert record["chosen"] == "0.5" and record["losses"]["0.5"] < record["losses"]["0.9999"]
    alone, _, _, same = train(tmp_path, averaging=partial(ExponentialAverage, decay=0.5), max_steps=12)
    assert all(torch.equal(averaged[name], alone[name]) for name in alone)
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in model.state_dict().items())
    assert any("average 0.5 chosen by 8 held-out micro-batches" in one for one in console.said)
    assert not any("used up" in one for one in console.said)
    train(tmp_path, averaging=several, console=console, max_steps=40)  # 12,000 tokens of text, 20,480 of training
    assert any("the training text was used up" in one for one in console.said)


def test_an_average_of_nothing_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"train.averaging: the average is empty"):
        train(tmp_path, max_steps=3, averaging=partial(WarmdownAverage, every=50, below=0.5))


def test_validation_is_regular_and_off_the_clock(tmp_path):
    found, asked = [], []

    def validate():
        asked.append(1)
        return {"val_bpb": 2.0, "val_loss": 3.0}

    whole, _, _, _ = train(tmp_path, max_steps=7, validate=validate, validate_every=3, on=found.append)
    assert [event["step"] for event in found if event["event"] == "validation"] == [0, 3, 6]
    again, _, _, _ = train(tmp_path, max_steps=7)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": Stages(stages=[(16, 0.5), (32, 1.0)])}, "reach it"),
        (
            {"context": Stages(stages=[(24, 0.5), (64, 1.0)]), "loader": SequentialLoader},
            "into rows of 24",
        ),
        ({"batch": Stages(stages=[(300, 0.5), (512, 1.0)])}, "batch_tokens=300 is not a multiple"),
        ({"batch": Stages(stages=[(256, 0.5), (1024, 1.0)])}, "must be train.batch_tokens=512"),
        ({"rewarmup_steps": 3}, "follows changes of train.context, and there is none"),
        ({"rewarmup_steps": -1}, "rewarmup_steps=-1"),
        ({"validate_every": 0}, "validate_every=0"),
        ({"checkpoints_kept": 0}, "checkpoints_kept=0"),
        ({"holdout_batches": 0}, "holdout_batches=0"),
    ],
)
def test_impossible_stages_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Trainer(**{**SETTINGS, **changes})


def test_a_position_goes_to_another_number_of_ranks_where_it_can():
    packing = {"loader": "document_packing", "files": ["a"], "cursor": 70, "shard": 0, "epoch": 0}
    saved = [{**packing, "world_size": 2, "rank": rank, "calls": 6, "calls_per_fit": 2} for rank in range(2)]
    fresh = {"loader": "document_packing", "world_size": 4, "rank": 3, "calls": 0, "calls_per_fit": 1}
    got = position_of(saved, fresh)
    assert got == {**packing, "world_size": 4, "rank": 3, "calls": 3, "calls_per_fit": 1}
    assert position_of(saved, {**fresh, "world_size": 2, "rank": 1}) == saved[1]
    with pytest.raises(UserError, match="read 4 spans together and this run reads 8: continue with launch.nproc=2"):
        position_of(saved, {**fresh, "calls_per_fit": 2})
    sequential = [{"loader": "sequential", "world_size": 1, "rank": 0, "cursor": 9}]
    assert position_of(sequential, {"loader": "sequential", "world_size": 2, "rank": 1})["rank"] == 1
    drawn = [{"loader": "shuffled_sequence", "world_size": 1, "rank": 0}]
    with pytest.raises(UserError, match=r"1 process\(es\) and this run has 2, and with the loader shuffled_se"):
        position_of(drawn, {"loader": "shuffled_sequence", "world_size": 2, "rank": 0})


def test_the_latest_snapshots_are_averaged_over_a_stop(tmp_path):
    """Snapshots after steps 3 to 12, of which the last three count; stopped in between."""
    changes = {"max_steps": 13, "averaging": partial(LatestSnapshots, every=3, count=3)}
    seen = {}
    _, _, _, model = train(tmp_path / "seen", **{**changes, "averaging": partial(Recording, into=seen)})
    whole, _, _, _ = train(tmp_path / "whole", **changes)
    for name, value in whole.items():
        torch.testing.assert_close(value, (seen[6][name] + seen[9][name] + seen[12][name]) / 3)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", checkpoint_seconds=0.0, stop_after=11, **changes)
    rest, _, _, _ = train(tmp_path / "cut", checkpoint_seconds=0.0, **changes)
    assert all(torch.equal(whole[name], rest[name]) for name in model.state_dict())


class Recording(ExponentialAverage):
    """Remembers the weights after every step."""

    def __init__(self, model, into):
        super().__init__(model, decay=0.5)
        self.into = into

    def update(self, model, position, lr_scale=1.0):
        super().update(model, position, lr_scale)
        self.into[position.step] = {name: value.clone() for name, value in model.state_dict().items()}
