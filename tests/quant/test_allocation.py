"""Bits by rank: published rules, against the ranking written out, and from the calibration of a model."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from pgolf.data.loaders import BatchShape
from pgolf.errors import UserError
from pgolf.kernels.attend import sdpa
from pgolf.model.gpt import GPT
from pgolf.model.roles import parameter_roles
from pgolf.quant import container
from pgolf.quant.allocation import BigramGuided, HessianTrace, allocated
from pgolf.quant.bigrams import BUCKETS, buckets
from pgolf.quant.calibration import Ground, TrainingText, calibrate
from pgolf.quant.compress import Compressor
from pgolf.quant.hessian import Calibration
from pgolf.quant.qat import LateQat
from pgolf.quant.rules import Choice
from pgolf.quant.schemes import Float32, Gptq, Half, Int8Rows, PercentileGptq, PercentileRows
from tests.quant.round_trip import rounding_of
from tests.support import ALONE, FakeDataset, tiny_model
from tests.train.small import Spoken


def known(*scores: tuple[float, float]) -> dict[str, Calibration]:
    """Matrices m0, m1, ... of given (trace, bigram score)."""
    return {
        f"m{index}": Calibration(torch.eye(2) * trace / 2, 1.0, None, bigrams)
        for index, (trace, bigrams) in enumerate(scores)
    }


def test_more_bits_for_the_largest_traces() -> None:
    found = HessianTrace(tensors=2).bits(known((3.0, 0), (9.0, 0), (1.0, 0), (4.0, 0)))
    assert found == {"m0": 5, "m1": 6, "m2": 5, "m3": 6}


def test_named_matrices_come_first() -> None:
    rule = HessianTrace(tensors=2, first=["m[02]"], bits=4, more_bits=7)
    assert rule.bits(known((3.0, 0), (9.0, 0), (1.0, 0))) == {"m0": 7, "m1": 4, "m2": 7}
    assert HessianTrace(tensors=66).bits(known((3.0, 0), (9.0, 0))) == {"m0": 6, "m1": 6}
    with pytest.raises(ValueError, match=r"matches 'blocks"):
        HessianTrace(first=["blocks.4.*"]).bits(known((3.0, 0)))


def test_a_blend_of_ranks() -> None:
    """Ten matrices whose traces rise and whose bigram scores fall: with 0.3 the trace decides, with 0.7 the bigrams."""
    matrices = known(*((float(index), 1.0 - index / 10) for index in range(10)))
    assert list(BigramGuided().bits(matrices).values()) == [5, 5, 5, 6, 6, 6, 6, 6, 7, 7]
    assert list(BigramGuided(blend=0.7).bits(matrices).values()) == [7, 7, 6, 6, 6, 6, 6, 5, 5, 5]
    assert set(BigramGuided(low=0.0, high=0.0).bits(matrices).values()) == {6}


def test_only_matrices_whose_scheme_can_are_changed() -> None:
    schemes = [Gptq(bits=6, clip_sigmas=12.85), PercentileGptq(bits=6), PercentileRows(bits=6), Half(), Int8Rows()]
    choices = [Choice(f"m{index}", "matrix", scheme) for index, scheme in enumerate(schemes)]
    choices.append(Choice("tok_emb", "embedding", Gptq(bits=7, clip_sigmas=15.0)))
    calibrations = known(*((1.0, 0.0) for _ in schemes)) | {"tok_emb": Calibration(torch.eye(2))}
    found = [one.scheme.label for one in allocated(HessianTrace(tensors=1), choices, calibrations) if one.scheme]
    assert found == ["gptq int6", "percentile gptq int5", "percentile int5", "float16", "int8 rows", "gptq int7"]
    assert isinstance(choices[0].scheme, Gptq) and choices[0].scheme.with_bits(5).levels == 15
    with pytest.raises(ValueError, match="could have other bits"):
        allocated(HessianTrace(), choices[3:5], calibrations)


@pytest.mark.parametrize("make", [lambda: HessianTrace(bits=6, more_bits=5), lambda: HessianTrace(tensors=0)])
def test_impossible_traces_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"bits=5|tensors=0"):
        make()


@pytest.mark.parametrize(("wrong", "match"), [({"blend": 1.5}, "blend"), ({"low": 0.9, "high": 0.2}, "add up")])
def test_impossible_blends_are_refused(wrong: dict[str, float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        BigramGuided(**wrong)


def calibration_of(model: GPT, folder: Path) -> tuple[dict[str, Calibration], list[torch.Tensor]]:
    """With bigram scores of two batches, and the tokens of those."""
    files, seen = FakeDataset(folder).train_files, list[torch.Tensor]()
    handle = model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    ground = Ground(model, sdpa, files, BatchShape(128, 32), 0, ALONE, Spoken())
    names = [name for name, role in parameter_roles(model).items() if role == "matrix"]
    found = calibrate(TrainingText(), 2, names, [], ground, bigrams=True)
    handle.remove()
    return found, seen


def test_the_bigram_score_is_the_energy_of_tokens_whose_bigram_comes_again(tmp_path: Path) -> None:
    model = tiny_model(scramble=0.2)
    found, seen = calibration_of(model, tmp_path)
    assert len(seen) == 4 and torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3])  # the same text twice
    pairs = [
        [(0 if at == 0 else row[at - 1], row[at]) for at in range(len(row))] for b in seen[:2] for row in b.tolist()
    ]
    counts = Counter(pair for row in pairs for pair in row)
    assert max(counts.values()) > 3
    energy, weighted = 0.0, 0.0
    site, taken = model.calibration_sites()["blocks.1.mlp.proj.weight"], list[torch.Tensor]()
    handle = site.register_forward_pre_hook(lambda module, inputs: taken.append(inputs[0]))
    with torch.no_grad():
        for tokens in seen[:2]:
            model(tokens)
    handle.remove()
    flat = [pair for row in pairs for pair in row]
    for pair, vector in zip(flat, torch.cat([one.flatten(0, 1) for one in taken]), strict=True):
        energy += float(vector.double().square().sum())
        weighted += float(vector.double().square().sum()) * (1 - 1 / counts[pair])
    assert found["blocks.1.mlp.proj.weight"].bigrams == pytest.approx(weighted / energy, rel=1e-5)
    assert len({round(one.bigrams or 0.0, 6) for one in found.values()}) > 3
    assert int(buckets(torch.tensor([[5, 7]]), 64)[0, 1]) == (5 * 64 + 7) % BUCKETS


def test_an_artifact_has_the_bits_that_were_allocated(tmp_path: Path) -> None:
    model = tiny_model(scramble=0.2)
    found, _ = calibration_of(model, tmp_path)
    tool = compressor(allocation=BigramGuided())
    report = tool.compress(model.state_dict(), parameter_roles(model), found, {}, tmp_path / "artifact.pgolf")
    labels = Counter(row["scheme"] for row in report["tensors"] if row["role"] == "matrix")
    count = len(found)
    expected = {"gptq int5": int(0.3 * count), "gptq int7": int(0.2 * count)}
    assert labels == {**expected, "gptq int6": count - sum(expected.values())}
    tensors, _ = container.read(tmp_path / "artifact.pgolf")
    levels = {one.encoded.scheme: abs(one.encoded.parts["symbols"]).max() for one in tensors if one.role == "matrix"}
    assert levels["gptq int5"] <= 15 < levels["gptq int7"] <= 63
    with pytest.raises(UserError, match="could have other bits"):
        compressor(matrix=Int8Rows(), allocation=HessianTrace()).compress(
            model.state_dict(), parameter_roles(model), {}, {}, tmp_path / "other.pgolf"
        )


def compressor(**changes: Any) -> Compressor:
    settings: dict[str, Any] = {"matrix": Gptq(bits=6, clip_sigmas=4.0), "embedding": Int8Rows(), "head": None}
    settings |= {"scalar": Float32(), "gate": Half(), "coder": "zlib", "calibration_batches": 1}
    return Compressor(**{**settings, "min_quantised_elements": 1, **changes})


def test_training_with_rounded_weights_does_not_know_of_it() -> None:
    rule = LateQat(below_lr_scale=None, at_fraction=0.5, min_steps=1, roles=["matrix"])
    with pytest.raises(ValueError, match="knows nothing of quant/allocation"):
        rounding_of(tiny_model(), compressor(allocation=HessianTrace(), qat=rule))
