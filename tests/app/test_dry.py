"""Making optimisers for a look at them imports no compiler, and leaves torch as it was."""

import sys
from typing import Any

import pytest
import torch

from pgolf.app.dry import KEPT_OUT, without_compiler


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Any:
    """torch's function that imports the compiler, as in a process that has not called it."""
    function = torch.optim.Optimizer.add_param_group.__wrapped__  # type: ignore[attr-defined]
    monkeypatch.delattr(function, KEPT_OUT, raising=False)
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    return function


def made() -> int:
    return len(torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2, device="meta"))]).param_groups)


def test_optimisers_are_made_without_the_compiler(add: Any) -> None:
    with without_compiler():
        assert made() == 1
    assert "torch._dynamo" not in sys.modules and not hasattr(add, KEPT_OUT)


def test_a_refusal_leaves_nothing_behind(add: Any) -> None:
    with pytest.raises(ValueError, match="learning rate"), without_compiler():
        torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=-1.0)
    assert not hasattr(add, KEPT_OUT)


def test_what_torch_has_kept_is_used(add: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(add, KEPT_OUT, calls := lambda *arguments: seen.append(arguments), raising=False)
    seen: list[Any] = []
    with without_compiler():
        torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])
    assert len(seen) == 1 and getattr(add, KEPT_OUT) is calls
