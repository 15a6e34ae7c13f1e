"""What happens before the first step leaves no trace; compiled training is the same training."""

from functools import partial

import pytest
import torch

from pgolf.data.loaders import DocumentPackingLoader, SequentialLoader
from pgolf.errors import UserError
from pgolf.optim.schedule import Stages
from pgolf.train.warmup import Warmup, synthetic
from tests.train.small import Spoken, losses, train


def test_a_warm_up_leaves_no_trace(tmp_path):
    whole, _, events, _ = train(tmp_path, max_steps=6)
    warm, _, same, _ = train(tmp_path, max_steps=6, warmup=Warmup(steps=3, momentum="reset"))
    assert losses(events) == losses(same) and all(torch.equal(whole[name], warm[name]) for name in whole)


def test_the_published_slip_keeps_the_momentum_alone(tmp_path):
    _, _, events, _ = train(tmp_path, max_steps=3)
    _, _, kept, _ = train(tmp_path, max_steps=3, warmup=Warmup(steps=3, momentum="kept"))
    assert losses(kept)[0] == losses(events)[0]  # the weights are the initial ones
    assert losses(kept)[1] != losses(events)[1]  # the first update is another


def test_every_shape_that_occurs_is_rehearsed(tmp_path, monkeypatch):
    """Short sequences under the plain plan, long ones under both."""
    compiled, seen = [], []

    def compile_(function):
        compiled.append(function)

        def wrapped(model, inputs, targets, context):
            seen.append((model.plan_name, context.packing.max_seqlen))
            return function(model, inputs, targets, context)

        return wrapped

    monkeypatch.setattr(torch, "compile", compile_)
    context = Stages(stages=[(16, 0.2), (64, 1.0)])
    whole, _, _, _ = train(tmp_path, max_steps=5, context=context, compile=False)
    assert not compiled
    again, _, _, _ = train(tmp_path, max_steps=5, context=context, compile=True)
    assert len(compiled) == 1 and seen[:3] == [("plain", 16), ("plain", 64), ("looped", 64)]
    assert set(seen) == set(seen[:3])
    assert all(torch.equal(whole[name], again[name]) for name in whole)


FEW = partial(DocumentPackingLoader, bucket=2)  # rows whose numbers of boundaries differ


@pytest.mark.parametrize("loader", [DocumentPackingLoader, FEW, SequentialLoader])
def test_graphs_of_the_compiler_train_alike_and_all_are_made_before_the_first_step(tmp_path, monkeypatch, loader):
    original, graphs, before = torch.compile, [], []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda function: original(function, backend=backend))
    torch._dynamo.reset()
    _, _, events, _ = train(tmp_path, max_steps=4, loader=loader)
    _, _, compiled, _ = train(
        tmp_path, max_steps=4, loader=loader, compile=True, on=lambda event: before.append(len(graphs))
    )
    assert losses(compiled) == pytest.approx(losses(events), rel=1e-5)
    assert set(before) == {2}  # one graph for each plan


def test_a_compiler_that_fails_is_said_or_refused(tmp_path, monkeypatch):
    def broken(function):
        def wrapped(*arguments):
            raise RuntimeError("no compiler here\nand more")

        return wrapped

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match="train.compile=true, but torch.compile fails here: RuntimeError: no compiler"):
        train(tmp_path, max_steps=2, compile=True)
    console = Spoken()
    train(tmp_path, max_steps=2, compile="auto", console=console)  # not even tried on a CPU
    assert console.said[0] == "train.compile=auto: not compiling: on a CPU it takes longer than it saves"


def test_synthetic_batches_have_the_shapes_of_real_ones():
    packed = synthetic(False, 96, [16, 40], 50, 8)
    assert packed[16].inputs.shape == (1, 96) and packed[40].cu_seqlens.tolist() == [0, 40, 80] + [96] * 5
    rows = synthetic(True, 96, [16, 48], 50, 1)
    assert rows[16].inputs.shape == (6, 16) and rows[48].targets.shape == (2, 48) and rows[48].cu_seqlens is None
    assert torch.equal(rows[16].inputs.flatten()[1:], rows[16].targets.flatten()[:-1])
    with pytest.raises(ValueError, match="steps=-1"):
        Warmup(steps=-1, momentum="reset")
