"""Layer plans: recurrence, ramps, skips and their rows, forms."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pgolf.model.context import PLAIN, Context
from pgolf.model.lanes import ParallelResidual, TwoLane
from pgolf.model.norm import rms_norm
from pgolf.model.plan import Depth, InPlace
from tests.support import tiny_model


def blocks(plan):
    return [step.block for step in plan.passes]


@st.composite
def depths(draw):
    num_layers = draw(st.integers(1, 12))
    start = draw(st.integers(0, num_layers - 1))
    settings = {
        "num_layers": num_layers,
        "loop_start": start,
        "loop_end": draw(st.integers(start, num_layers - 1)),
        "num_loops": draw(st.integers(0, 4)),
        "skips": draw(st.booleans()),
        "ramp": draw(st.booleans()),
        "skip_rows": draw(st.sampled_from(["all", "plain", "plain_reused"])),
        "norm_depth": draw(st.sampled_from(["physical", "virtual"])),
    }
    return settings


@given(depths())
def test_every_plan_is_whole(settings):
    depth = Depth(**settings)
    segment = settings["loop_end"] - settings["loop_start"] + 1
    for plan in depth.plans.values():
        assert [step.slot for step in plan.passes] == list(range(len(plan.passes)))
        assert set(blocks(plan)) == set(range(settings["num_layers"]))
        kept = 0
        for step in plan.passes:
            kept += step.push - (step.pop is not None)
            assert kept >= 0
            assert step.depth == (step.block if settings["norm_depth"] == "physical" else step.slot)
        rows = [step.pop for step in plan.passes if step.pop is not None]
        assert rows == sorted(rows) and (not rows or rows[0] == 0)
        assert bool(rows) == (settings["skips"] and bool(plan.num_skips))
    lengths = [len(plan.passes) for plan in depth.plans.values()]
    if settings["num_loops"] == 0:
        assert lengths == [settings["num_layers"]] * 2
    elif settings["ramp"]:
        assert lengths == [settings["num_layers"] + loops * segment for loops in range(settings["num_loops"] + 1)]
    else:
        assert lengths == [settings["num_layers"], settings["num_layers"] + settings["num_loops"] * segment]


def test_a_ramp_names_its_plans_in_order():
    depth = Depth(num_layers=11, loop_start=3, loop_end=5, num_loops=3, skips=True, ramp=True)
    assert list(depth.plans) == ["plain", "loop1", "loop2", "looped"]
    assert blocks(depth.plans["loop1"]) == [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7, 8, 9, 10]
    assert list(Depth(num_layers=4, loop_start=0, loop_end=0, num_loops=0, skips=True).plans) == ["plain", "looped"]
    depth = Depth(num_layers=4, loop_start=1, loop_end=2, num_loops=2, skips=True, ramp=True)
    model = tiny_model(scramble=0.1, depth=depth)
    tokens = torch.arange(4, 20)[None]
    seen = []
    for name in model.plans:
        model.set_plan(name)
        seen.append(model(tokens))
    assert len(seen) == 3 and not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])


@pytest.mark.parametrize(
    ("skip_rows", "rows", "weights"),
    [
        ("all", [0, 1, 2, 3, 4, 5, None], 6),  # 2026-03-31
        ("plain_reused", [0, 1, 2, 3, 4, 4, None], 5),  # 2026-04-03
        ("plain", [0, 1, 2, 3, 4, None, None], 5),  # 2026-04-04
    ],
)
def test_skip_rows_of_the_early_recurrences(skip_rows, rows, weights):
    """Blocks 4 and 5 twice: 13 passes, six of them in the first half."""
    depth = Depth(num_layers=11, loop_start=4, loop_end=5, num_loops=1, skips=True, skip_rows=skip_rows)
    assert [step.pop for step in depth.plans["looped"].passes[6:]] == rows
    assert max(plan.num_skips for plan in depth.plans.values()) == weights


def test_virtual_depth_reaches_the_norms():
    """A block that is visited twice is scaled by its place in the plan, so its second visit reads a smaller input."""
    scales = {}
    for norm_depth in ("physical", "virtual"):
        depth = Depth(num_layers=4, loop_start=1, loop_end=2, num_loops=1, skips=True, norm_depth=norm_depth)
        model = tiny_model(scramble=0.1, depth=depth)
        model.set_plan("looped")
        seen = scales[norm_depth] = []
        model.blocks[1].attn.register_forward_pre_hook(
            lambda module, inputs, seen=seen: seen.append(inputs[0].square().mean().sqrt().item())
        )
        model(torch.arange(4, 20)[None])
    assert scales["physical"] == pytest.approx([2**-0.5, 2**-0.5], rel=1e-3)
    assert scales["virtual"] == pytest.approx([2**-0.5, 4**-0.5], rel=1e-3)


def test_forms_of_the_wirings():
    depth = Depth(num_layers=11, loop_start=3, loop_end=5, num_loops=2, skips=True)
    lanes = partial(TwoLane, start_layer=8, final_lane="mean")(11)
    looped = depth.plans["looped"].formed(lanes.form)
    assert [step.block for step in looped.passes if step.form == "lanes"] == [8, 9, 10]
    assert {step.form for step in looped.passes if step.block < 8} == {"sequential"}
    parallel = depth.plans["looped"].formed(ParallelResidual(11, start_layer=4).form)
    assert [step.block for step in parallel.passes if step.form == "sequential"] == [0, 1, 2, 3, 3, 3]
    assert [row["form"] for row in looped.rows()][-3:] == ["lanes"] * 3
    with pytest.raises(ValueError, match=r"start_layer=11 is none of the layers 0\.\.10"):
        ParallelResidual(11, start_layer=11)


def in_place(num_loops=0, from_start=True, loops=4, first_layer=3, last_layer=5, num_layers=9):
    repeat = InPlace(loops=loops, first_layer=first_layer, last_layer=last_layer, from_start=from_start)
    return Depth(num_layers=num_layers, loop_start=1, loop_end=2, num_loops=num_loops, skips=True, repeat=repeat)


def test_universal_transformer_loops_of_the_published_sweep():
    """Four loops over [3, 6) of nine layers: a skip goes in before the first repetition, and out after the last; layer
    3 keeps its output and layer 5 takes one back."""
    plan = in_place().plans["plain"]
    assert blocks(plan) == [0, 1, 2, *[3] * 4, *[4] * 4, *[5] * 4, 6, 7, 8]
    assert [step.slot for step in plan.passes] == blocks(plan) and plan.num_slots == 9
    assert [index for index, step in enumerate(plan.passes) if step.push] == [0, 1, 2, 6]
    assert {index: step.pop for index, step in enumerate(plan.passes) if step.pop is not None} == {
        7: 0,
        11: 1,
        15: 2,
        16: 3,
    }
    assert [step.visit for step in plan.passes if step.block == 4] == [0, 1, 2, 3]
    assert [step.block for step in plan.passes if step.early] == [0, 1, 2, 3, 3, 3, 3]


def test_repetition_in_place_begins_with_the_last_plan_when_asked():
    always, later = in_place(), in_place(from_start=False)
    assert always.plans["plain"] == always.plans["looped"] == later.plans["looped"]
    assert blocks(later.plans["plain"]) == list(range(9))
    both = in_place(num_loops=1, from_start=False, loops=2, first_layer=2, last_layer=3, num_layers=4)
    assert blocks(both.plans["looped"]) == [0, 1, 2, 2, 1, 2, 2, 3, 3]
    assert [step.slot for step in both.plans["looped"].passes] == [0, 1, 2, 2, 3, 4, 4, 5, 5]
    assert [step.visit for step in both.plans["looped"].passes if step.block == 2] == [0, 1, 2, 3]


def test_repetition_in_place_is_the_block_applied_again():
    """x <- block(x, x0) with the same x0, the skips of layers 1 and 0 once each."""
    model = tiny_model(scramble=0.2, skip_gates=False, depth=in_place(0, True, 3, 1, 2, num_layers=4))
    tokens = torch.arange(4, 20)[None]
    x = x0 = rms_norm(model.tok_emb(tokens))
    step = {each.block: each for each in model.plan.passes}
    kept = []
    for block, times, row in ((0, 1, None), (1, 3, None), (2, 3, 0), (3, 1, 1)):
        x = x if row is None else x + model.skip_weights[row] * kept.pop()
        for _ in range(times):
            x = model.blocks[block](x, x0, step[block], PLAIN)
        kept.append(x)
        kept = kept[: 2 if block < 2 else -1]
    torch.testing.assert_close(model(tokens), rms_norm(x))


def test_repetitions_in_place_share_one_adapter():
    model = tiny_model(scramble=0.2, depth=in_place(0, True, 3, 1, 2, num_layers=4))
    sites = model.adapter_sites()
    assert len(sites) == len(set(sites)) == 4 * 5 + 1
    asked = []

    class Constant:
        def delta(self, slot, site, x):
            asked.append((slot, site))
            return 0.1 * torch.ones(1, 1, 32) if (slot, site) == (1, "mlp") else None

    tokens = torch.arange(4, 20)[None]
    changed = model(tokens, Context(adapters=Constant()))
    assert asked.count((1, "mlp")) == 3 and not torch.allclose(changed, model(tokens))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loops": 1}, "repeats nothing"),
        ({"first_layer": 6}, "between 0 and last_layer=5"),
        ({"last_layer": 9}, r"last_layer=9 is none of the layers 0\.\.8"),
    ],
)
def test_repetitions_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        in_place(**settings)
