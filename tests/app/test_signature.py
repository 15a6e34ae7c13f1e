"""Which YAML values fit which annotations."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Optional, TypedDict, Union, Unpack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgolf.app.build import BuildError, build
from pgolf.app.signature import accepts, accepts_node, describe, signature_of

SCALAR = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@pytest.mark.parametrize(
    ("annotation", "right", "wrong"),
    [
        (int, [0, -3], [True, 1.0, "1", None, [1]]),
        (float, [0, 1.5], [True, "1", None]),
        (bool, [True], [0, "true", None]),
        (str, ["", "a"], [1, None, ["a"]]),
        (Path, ["a"], [1]),
        (int | None, [None, 1], ["", 1.5]),
        (Optional[str], [None, "a"], [1]),
        (Union[int, str], [1, "a"], [None, 1.5]),
        (Literal["a", 2], ["a", 2], ["b", 3, True]),
        (list[int], [[], [1, 2]], [1, [1.5], ["a"]]),
        (tuple[float, float], [[1, 2.5]], [[1], [1, 2, 3], 1]),
        (tuple[int, ...], [[], [1, 2, 3]], [["a"]]),
        (Sequence[str], [["a"]], ["a", [1]]),
        (dict[str, float], [{}, {"a": 1}], [[], {"a": "b"}]),
        (Mapping[str, list[int]], [{"a": [1]}], [{"a": [None]}]),
        (Callable[[int], int], [], [1, "a", None, {}]),
        (Any, [1, None, "a", []], []),
    ],
)
def test_accepts(annotation: Any, right: list[Any], wrong: list[Any]) -> None:
    for value in right:
        assert accepts(annotation, value), value
    for value in wrong:
        assert not accepts(annotation, value), value
    assert describe(annotation)


@given(SCALAR)
def test_a_union_accepts_exactly_what_its_members_accept(value: object) -> None:
    members = (int, float, bool, str, type(None))
    for first in members:
        for second in members:
            assert accepts(first | second, value) == (accepts(first, value) or accepts(second, value))


def test_nodes_fit_callables_and_classes_and_absent_ones_stand_for_none() -> None:
    from pgolf import fakes  # type: ignore[attr-defined]

    node = {"_target_": "pgolf.fakes.Gate", "_partial_": True, "width": 1}
    absent = {"_target_": "pgolf.absent.absent"}
    assert accepts_node(Callable[[int], fakes.Gate] | None, node)
    assert not accepts_node(int, node) and not accepts_node(list[int], node)
    assert accepts_node(Callable[..., Any] | None, absent)
    assert not accepts_node(Callable[..., Any], absent)
    assert accepts_node(fakes.Groups, {"_target_": "pgolf.fakes.Groups"})
    assert not accepts_node(fakes.Groups, {"_target_": "pgolf.fakes.Data"})


def test_the_first_argument_of_a_torch_optimizer_comes_at_run_time() -> None:
    import torch

    signature = signature_of(torch.optim.AdamW)
    assert signature.runtime == ("params",)
    assert {"lr", "betas", "weight_decay"} <= signature.arguments.keys()
    assert not signature.required


class Named(TypedDict, total=False):
    part: int | None


def test_keywords_that_a_typed_dict_names_are_arguments_and_no_others() -> None:
    def takes(at_run_time: int, *, size: float, **parts: Unpack[Named]) -> None: ...

    signature = signature_of(takes)
    assert signature.arguments == {"size": float, "part": int | None}
    assert signature.required == {"size"} and signature.runtime == ("at_run_time",) and not signature.open_ended

    def open_ended(*, size: float, **parts: int) -> None: ...

    assert signature_of(open_ended).open_ended and signature_of(open_ended).arguments == {"size": float}


def test_build_makes_objects_partials_tuples_and_none() -> None:
    node = {
        "_target_": "pgolf.fakes.Optim",
        "_partial_": True,
        "matrix": {"_target_": "pgolf.fakes.Groups", "lr": 0.1, "betas": [0.9, 0.95]},
        "scalar": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1},
    }
    made = build(node, "optim")
    assert type(made).__name__ == "partial"
    assert type(made.keywords["matrix"]).__name__ == "Groups"
    assert build({"_target_": "pgolf.absent.absent"}, "x") is None
    assert build({"a": [{"_target_": "pgolf.absent.absent"}, 1]}, "x") == {"a": [None, 1]}


def test_build_names_the_node_whose_constructor_raises() -> None:
    node = {"schemes": {"matrix": {"_target_": "pgolf.fakes.Scheme", "bits": 9}}}
    with pytest.raises(BuildError, match=r"^quant\.schemes\.matrix: bits=9") as caught:
        build(node, "quant")
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("target", ["os.system", "torch.load", "builtins.exec", "subprocess.run"])
def test_build_refuses_targets_outside_the_list(target: str) -> None:
    with pytest.raises(BuildError, match="targets outside pgolf are refused"):
        build({"a": [{"_target_": target}]}, "x")
