"""What benchmarks/gpu.py makes of calls that fail, of time that is over, and of what earlier commands measured."""

import importlib
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from pgolf.errors import UserError
from pgolf.train.loss.forward import loss_of

FACTS = {"device": "One GPU", "slug": "one-gpu", "date": "2026-01-01", "torch": "2", "cuda": "13", "triton": "3"}
FACTS["ceiling_tflops"] = None


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    yield importlib.import_module("gpu")
    for name in ("gpu", "gpu_table"):
        sys.modules.pop(name, None)


def bench(gpu, seconds=1e6, repeats=2):
    made = gpu.Bench.__new__(gpu.Bench)
    made.preset, made.device = "pr0", torch.device("cpu")
    made.options = Namespace(seconds=seconds, repeats=repeats)
    return made


def out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.\nand more")


def test_what_runs_out_of_memory_is_a_line_and_the_others_are_measured(gpu):
    calls = []
    works = {"first": out_of_memory, "second": lambda: calls.append(1), "third": lambda: None}
    first, second, third = bench(gpu).time(works, {"second": "said"})
    assert first["note"] == "failed: OutOfMemoryError: CUDA out of memory. Tried to allocate 3.00 GiB."
    assert "ms" not in first and second["note"] == "said" and second["ratio"] == 1.0 and third["ms"] > 0.0
    assert len(calls) == 3 + 2 and second["first_seconds"] > 0.0


def test_what_fails_while_it_is_timed_leaves_the_others_their_turns(gpu):
    calls = []

    def dies_late():
        calls.append(1)
        if len(calls) > 4:
            out_of_memory()

    first, second = bench(gpu, repeats=3).time({"first": dies_late, "second": lambda: None})
    assert "ms" not in first and first["note"].startswith("failed: ") and second["calls"] == 3


def test_what_there_is_no_time_for_is_left_out_and_said(gpu):
    (row,) = bench(gpu, seconds=0.0).time({"first": out_of_memory})
    assert row["left_out"] and "no time was left" in row["note"]


def block(*rows, part="steps", whole=True, failed=None):
    return {"preset": "pr0", "part": part, "settings": {"tokens": 8}, "whole": whole, "failed": failed, "rows": rows}


def row(what, ms=2.0):
    return {"what": what, "ms": ms, "ratio": 1.0, "peak_gib": 1.5, "first_seconds": 40.0, "note": ""}


def test_a_command_goes_on_from_the_files_of_those_before_it(gpu, tmp_path):
    blocks = [block(row("compiled, plain")), block(row("Muon, a rank's share of 8"), part="muon")]
    assert gpu.kept(tmp_path, FACTS) == []
    gpu.keep(tmp_path, FACTS, blocks)
    again = gpu.kept(tmp_path, {**FACTS, "ceiling_tflops": 790.0})
    assert [gpu.key(one) for one in again] == [("pr0", "steps", {"tokens": 8}), ("pr0", "muon", {"tokens": 8})]
    text = (tmp_path / "gpu-one-gpu-2026-01-01.md").read_text()
    assert "| compiled, plain | 1.000 | 2.00 |" in text and "4.0 ms a step of 786,432 tokens" in text
    with pytest.raises(UserError, match="measured with another torch"):
        gpu.kept(tmp_path, {**FACTS, "torch": "3"})


def test_a_part_that_failed_is_not_whole_and_says_why(gpu, monkeypatch):
    monkeypatch.setitem(gpu.PARTS, "muon", lambda made: out_of_memory())
    made = bench(gpu)
    made.settings = {"tokens": 8}
    found = gpu._measured(made, "muon")
    assert not found["whole"] and found["failed"].startswith("failed: OutOfMemoryError: CUDA out of memory")
    assert "pr0 muon: failed: OutOfMemoryError" in gpu.render(FACTS, [found])


def test_a_rank_s_share_is_an_eighth_of_each_shape_rounded_up(gpu):
    shapes = [(4, 4)] * 22 + [(8, 4)] * 11
    share = gpu.share_of([torch.nn.Parameter(torch.zeros(shape)) for shape in shapes])
    assert [tuple(one.shape) for one in share] == [(4, 4)] * 3 + [(8, 4)] * 2


def test_every_variant_keeps_its_graphs_for_itself(gpu):
    one, other = gpu._with_code_of_its_own(loss_of), gpu._with_code_of_its_own(loss_of)
    assert len({id(each.__code__) for each in (one, other, loss_of)}) == 3 and one.__code__ == loss_of.__code__
    entries = torch._dynamo.eval_frame._debug_get_cache_entry_list
    torch._dynamo.reset()
    doubled = gpu._with_code_of_its_own(plus)
    torch.compile(doubled, backend="eager")(torch.ones(2), 1.0)
    assert (len(entries(doubled.__code__)), len(entries(plus.__code__))) == (1, 0)


def plus(x, y):
    return x + y


def test_attention_is_counted_over_documents_and_not_over_the_longest_piece(gpu):
    options = Namespace(scale="nano", tokens=500, repeats=1, eager=True)
    made = gpu.Bench("pr1736", torch.device("cpu"), options)
    lengths = made.batch.cu_seqlens.diff().tolist()
    assert max(lengths) <= made.length and sum(lengths) == 500
    assert made.seen == round(sum(length**2 for length in lengths) / 500) < made.length


def test_a_chunk_under_adapters_is_one_graph(gpu, monkeypatch):
    """And the model's own weights want no gradients, as in a run."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compiled(function, backend="eager", **options))
    made = gpu.Bench("pr1855", torch.device("cpu"), Namespace(scale="nano", tokens=512, repeats=1, eager=False))
    made.options.seconds = 1e6
    model = made.model()
    made.model = lambda: model
    eager, one = gpu.adaptation(made)
    assert "ms" in eager and "ms" in one and one["note"].endswith("; 1 graph")
    assert all(parameter.grad is None for parameter in model.parameters())
