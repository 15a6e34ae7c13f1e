"""A temperature of all logits: fitted on training text, kept in the artifact, part of every score."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pgolf.data.loaders import BatchShape
from pgolf.data.loaders.shuffled_sequence import ShuffledSequenceLoader
from pgolf.errors import UserError
from pgolf.kernels.attend import sdpa
from pgolf.model.gpt import GPT
from pgolf.quant import container, packer
from pgolf.quant.calibration import Ground
from pgolf.quant.temperature import Temperature, temperature_of, vertex
from pgolf.score.scorer import Scorer
from pgolf.ttt.fixed import Chunked
from tests.quant.small import artifact
from tests.support import ALONE, FakeDataset, documents, tiny_model
from tests.train.small import Spoken
from tests.ttt.strategies import BENCH, phased

TOKENS = torch.randint(4, 64, (3, 17), generator=torch.Generator().manual_seed(5))


@given(
    a=st.floats(0.1, 10),
    at=st.floats(0.92, 1.08),
    points=st.sampled_from([(0.9, 1.0, 1.1), (0.9, 0.93, 1.0, 1.04, 1.2)]),
)
def test_the_vertex_of_a_parabola(a: float, at: float, points: tuple[float, ...]) -> None:
    found = vertex(points, [a * (point - at) ** 2 + 3.0 for point in points])
    best = min(points, key=lambda point: (point - at) ** 2)
    assert found == (pytest.approx(at, abs=1e-6) if best not in (points[0], points[-1]) else best)


def test_losses_that_are_equal_or_fall_to_an_end() -> None:
    assert vertex((0.9, 1.0, 1.1), (2.0, 2.0, 2.0)) in (0.9, 1.0, 1.1)
    assert vertex((0.9, 1.0, 1.1), (3.0, 2.0, 1.0)) == 1.1


def ground(model: GPT, folder: Path) -> Ground:
    """Training rows of 32 tokens, four in a batch."""
    return Ground(model, sdpa, FakeDataset(folder).train_files, BatchShape(128, 32), 0, ALONE, Spoken())


def learned(model: GPT, place: Ground) -> None:
    """A little of the training text, so that the model is right more often than not."""
    loader, optimizer = (
        ShuffledSequenceLoader(place.train_files, 1, 0, place.shape),
        torch.optim.Adam(model.parameters()),
    )
    optimizer.param_groups[0]["lr"] = 0.01
    for _ in range(25):
        batch = loader.next()
        optimizer.zero_grad()
        logits = model.logits(model(batch.inputs)).flatten(0, 1)
        torch.nn.functional.cross_entropy(logits, batch.targets.flatten()).backward()
        optimizer.step()


def test_it_has_the_least_loss_on_training_text_behind_the_calibration(tmp_path: Path) -> None:
    model, candidates = tiny_model(scramble=0.05), (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    place = ground(model, tmp_path)
    learned(model, place)
    model.temperature = 0.5  # twice as sure as it has learned to be
    rule = Temperature(tokens=200, candidates=candidates)
    found = rule.losses(place, skip_batches=3)
    loader = ShuffledSequenceLoader(place.train_files, 1, 0, place.shape)
    batches = [loader.next() for _ in range(5)][3:]  # two hold 200 tokens

    def loss(temperature: float) -> float:
        total = 0.0
        for batch in batches:
            logits = model.logits(model(batch.inputs)).flatten(0, 1)
            total += float(torch.nn.functional.cross_entropy(logits / temperature, batch.targets.flatten()).detach())
        return total / len(batches)

    assert found == pytest.approx([loss(one) for one in candidates], rel=1e-5)
    best = rule.fit(place, 3)
    assert candidates[0] < best < candidates[-1] and loss(best) <= min(found) + 1e-3
    assert Temperature(tokens=1, candidates=(0.2, 0.3, 0.4)).fit(place, 0) == 0.4
    assert "an end of quant.temperature.candidates" in place.console.said[-1]  # type: ignore[attr-defined]


def test_logits_are_divided_after_the_cap() -> None:
    model = tiny_model(scramble=0.2)
    plain = model.logits(model(TOKENS)).detach()
    before = set(model.state_dict())
    model.temperature = 1.25
    torch.testing.assert_close(model.logits(model(TOKENS)).detach(), plain / 1.25)
    assert set(model.state_dict()) == before


@pytest.mark.parametrize("strategy", [Chunked(sequence_tokens=16, rows=2), phased(phases=0)])
def test_every_strategy_scores_with_it(strategy: Any) -> None:
    """Normalised (the scorer refuses all else), and another score."""
    totals = []
    for temperature in (1.0, 1.5):
        model, scorer = tiny_model(scramble=0.2), Scorer(documents([20, 15]), ALONE)
        model.temperature = temperature
        strategy.run(model, scorer, BENCH)
        totals.append(scorer.total().nats)
    assert totals[0] != totals[1]


def test_an_artifact_brings_it_along(tmp_path: Path) -> None:
    path = artifact(tmp_path / "a.pgolf", "zlib")
    before, size = container.load(path)[0], path.stat().st_size
    packer.annotate(path, {"temperature": 0.9731})
    after, metadata = container.load(path)
    assert temperature_of(metadata) == 0.9731 and temperature_of({}) == 1.0
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert 0 < path.stat().st_size - size < 40  # its bytes count


@pytest.mark.parametrize("wrong", [0.0, -1, "1", True, float("nan"), float("inf")])
def test_what_is_no_temperature_is_refused(wrong: Any) -> None:
    with pytest.raises(UserError, match="must be a positive number"):
        temperature_of({"temperature": wrong})


@pytest.mark.parametrize("candidates", [(1.0, 1.1), (1.0, 0.9, 1.1), (0.0, 1.0, 2.0)])
def test_impossible_candidates_are_refused(candidates: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="three or more positive numbers"):
        Temperature(tokens=1, candidates=candidates)
