"""Reading the settings of a test-time-training case: what is known is built, the rest is refused by name; what differs
is found."""

from dataclasses import replace

import numpy as np
import pytest

from pgolf.interop.parity import text, ttt
from pgolf.interop.parity.case import Case, Unsupported
from tests.support import GOLDEN


def golden(name):
    path = GOLDEN / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return Case.load(path, "ttt_")


def changed(case, arrays=None, ttt_settings=None, **meta):
    settings = {**case.meta["ttt"], **(ttt_settings or {})}
    return replace(case, meta={**case.meta, "ttt": settings, **meta}, arrays={**case.arrays, **(arrays or {})})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ttt_settings": {"ttt_grad_steps": 2}}, "ttt_grad_steps=2"),
        ({"ttt_settings": {"ttt_optimizer": "sgd"}}, "ttt_optimizer=sgd"),
        ({"ttt_settings": {"ttt_mask": "no_mlp"}}, "ttt_mask=no_mlp"),
        ({"ttt_settings": {"ttt_eval_batches": "1,2"}}, "ttt_eval_batches=1,2"),
        ({"ttt_settings": {"ttt_teleport": 1}}, "setting.s. not known: ttt_teleport"),
        ({"ttt_settings": {"ttt_k_lora": False}}, "adapters are given at"),
        ({"env": {"TTT_TELEPORT": "1"}}, "environment setting.s. not known: TTT_TELEPORT"),
    ],
)
def test_what_is_not_known_is_refused_by_name(changes, message):
    with pytest.raises(Unsupported, match=message):
        ttt.phased(changed(golden("ttt_1736_lr0_g0"), **changes))


def test_differences_are_found():
    case = golden("ttt_1736_lr0_g0")
    running = case.arrays["cum_loss_bytes_tokens"].copy()
    running[7, 0] *= 1.0001
    assert "running losses" in ttt.phased(changed(case, {"cum_loss_bytes_tokens": running})).remarks[0]
    stream = case.arrays["phase1_global_tokens"].copy()
    stream[3] += 1
    assert "stream of phase 1" in ttt.phased(changed(case, {"phase1_global_tokens": stream})).remarks[0]
    more = ttt.phased(changed(case, ttt_settings={"phased_ttt_num_phases": 2}))
    assert not more.passed and any("number of global phases" in remark for remark in more.remarks)
    assert not ttt.phased(changed(case, alpha=8.0, ttt_settings={"ttt_lora_lr": 0.001})).passed


def test_chosen_documents_are_charged_for_what_follows_them():
    given = text.text_of(np.array([1, 5, 6, 1, 7, 1, 8, 9]), np.array([0, 1, 1, 0, 1, 0, 1, 1]), np.array([0, 3, 5]))
    first = text.chosen_documents(given, [0, 1])
    assert first.tokens.tolist() == [1, 5, 6, 1, 7, 1] and first.document_starts.tolist() == [0, 3]
    last = text.chosen_documents(given, [0, 2])
    assert last.tokens.tolist() == [1, 5, 6, 1, 8, 9] and last.document_starts.tolist() == [0, 3]
