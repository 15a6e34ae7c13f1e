"""What goes wrong in the middle of training: signals, weights that stop being numbers, clocks that jump."""

import os
import signal
import threading

import pytest
import torch

from pgolf.errors import UserError
from pgolf.optim.averaging import SeveralDecays
from pgolf.optim.clip import GlobalNorm, LyapunovNorm
from pgolf.optim.schedule import Constant
from pgolf.train import interrupts
from pgolf.train.clock import BudgetClock
from pgolf.train.diagnosis import first_not_finite
from tests.support import tiny_model
from tests.train import small
from tests.train.small import Spoken, losses, train


@pytest.fixture(autouse=True)
def _handlers():
    """Both signals raise as they do in a process of pgolf; all handlers are put back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, interrupts.terminate)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_and_keeps_it(tmp_path, number):
    """The step during which it comes is done, written down, and not done again."""
    whole, _, events, _ = train(tmp_path / "whole")
    console, seen = Spoken(), []

    def on(event):
        seen.append(event)
        if event["event"] == "step" and event["step"] == 11:
            os.kill(os.getpid(), number)

    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt) as stopped:
        train(tmp_path / "cut", on=on, console=console)  # no checkpoint is due in this run
    assert stopped.type is interrupts.Interrupted and seen[-1]["step"] == 11
    assert console.said[-1].startswith("asked to end: step 11 is kept in ")
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
    rest, progress, tail, _ = train(tmp_path / "cut")
    assert progress.step == 30 and losses(tail) == losses(events)[11:]
    assert all(torch.equal(whole[name], rest[name]) for name in whole)


def test_a_second_signal_does_not_wait_and_an_echo_is_none():
    now = [0.0]
    with pytest.raises(interrupts.Terminated), interrupts.deferred(lambda: now[0]) as asked:
        assert not asked()
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked()
        now[0] += 0.5
        os.kill(os.getpid(), signal.SIGTERM)  # torchrun passes on what the terminal sent to all
        now[0] += 10.0
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is interrupts.terminate


def test_a_schedulers_handler_stays():
    heard = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    with interrupts.deferred() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM] and not asked()


def test_another_thread_trains_without_handlers():
    found = []

    def work():
        with interrupts.deferred() as asked:
            found.append(asked())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


def test_nothing_is_lost_of_what_remembers(tmp_path):
    """Several averages, an adaptive clip, stages: cut in every stage, the same bits as without a cut."""
    from functools import partial

    changes = {
        **small.STAGED,
        "max_steps": 12,
        "clip": LyapunovNorm(norm=1.0, threshold=0.0),
        "averaging": partial(SeveralDecays, decays=[0.5, 0.8]),
    }
    whole, _, events, _ = train(tmp_path / "whole", **changes)
    for stop in (3, 6, 10):
        folder = tmp_path / f"cut{stop}"
        with pytest.raises(KeyboardInterrupt):
            train(folder, checkpoint_seconds=0.0, stop_after=stop, **changes)
        rest, _, tail, _ = train(folder, **changes)
        settings = [{**event, "seconds": 0, "data_seconds": 0} for event in tail]
        assert settings == [{**event, "seconds": 0, "data_seconds": 0} for event in events[stop - 1 :]]
        assert all(torch.equal(whole[name], rest[name]) for name in whole)


def test_the_random_state_is_kept(tmp_path):
    draws = []

    def on(event):
        if event["event"] == "step":
            draws.append(float(torch.rand(())))

    torch.manual_seed(5)
    train(tmp_path / "whole", max_steps=6, on=on)
    whole, draws = draws, []
    torch.manual_seed(5)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", max_steps=6, checkpoint_seconds=0.0, stop_after=4, on=on)
    torch.manual_seed(99)
    draws = []
    train(tmp_path / "cut", max_steps=6, on=on)
    assert draws == whole[3:]


def poisoned(at: int, name: str, value: float):
    """A log that spoils a parameter after step `at`; `on` of `train`, and the model to train."""
    model = tiny_model()

    def on(event):
        if event["event"] == "step" and event["step"] == at:
            with torch.no_grad():
                model.get_parameter(name).view(-1)[3] = value

    return {"model": model, "on": on}


@pytest.mark.parametrize("value", [float("nan"), 1e30])  # the square of the other one is infinite
def test_weights_that_are_not_numbers_are_named_and_never_written(tmp_path, value):
    spoilt = poisoned(4, "blocks.2.mlp.fc.weight", value)
    with pytest.raises(UserError, match=r"step 4 left weights.*first the parameter blocks.2.mlp.fc.weight") as error:
        train(tmp_path, checkpoint_seconds=0.0, **spoilt)
    assert f"last good state is {tmp_path / 'checkpoint' / 'state.pgolf'}" in str(error.value)
    _, _, tail, _ = train(tmp_path, max_steps=30)
    assert tail[0]["step"] == 4  # the state of step 3 is good


def test_a_loss_that_is_not_a_number_names_what_went_first(tmp_path):
    spoilt = poisoned(3, "blocks.1.attn.c_v.weight", float("inf"))
    with pytest.raises(UserError, match=r"at step 4\. Not a number first: the parameter blocks.1.attn.c_v.weight"):
        train(tmp_path, **spoilt)
    with pytest.raises(UserError, match=r"became.*(nan|inf).*optim.matrix.lr.*There is no good state yet"):
        train(tmp_path / "big", clip=GlobalNorm(norm=1e30), schedule=Constant(value=1e30))


class Overflowing(torch.nn.Module):
    """Two layers whose inner values are finite and whose product, or its gradient, is not."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, 4, bias=False)
        self.last = torch.nn.Linear(4, 4, bias=False)
        self.scale = scale

    def forward(self, x):
        return self.last(self.first(x) * self.scale)


def test_outputs_and_gradients_are_named_in_the_order_in_which_they_go():
    x = torch.ones(2, 4)
    model = Overflowing(1e38)
    with torch.no_grad():
        model.last.weight.fill_(1e3)
    assert first_not_finite(model, [x], lambda batch: model(batch).sum()) == "the output of last, in micro-batch 1 of 1"
    model = Overflowing(1.0)
    assert first_not_finite(model, [x], lambda batch: model(batch).sum()) is None
    with torch.no_grad():
        model.last.weight.zero_()
    bad = lambda batch: model(batch).abs().sqrt().sum()  # noqa: E731  the slope of a root at zero
    assert first_not_finite(model, [x, x], bad) == "the gradient of last.weight, in micro-batch 1 of 2"
    assert all(parameter.grad is None for parameter in model.parameters())
    assert first_not_finite(model, [x], lambda batch: model(batch).sum() / 0.0) == "the loss, in micro-batch 1 of 1"


class Jumping:
    """A clock that ticks a tenth of a second a look, and jumps at the given looks."""

    def __init__(self, jumps: dict[int, float]) -> None:
        self.looks, self.seconds, self.jumps = 0, 0.0, jumps

    def __call__(self) -> float:
        self.looks += 1
        self.seconds += 0.1 + self.jumps.get(self.looks, 0.0)
        return self.seconds


def test_a_clock_that_jumps_is_survived_and_said(tmp_path):
    console = Spoken()
    back = {"max_steps": None, "max_seconds": 5.0, "clock": BudgetClock(now=Jumping({20: -3600.0}))}
    _, progress, events, _ = train(tmp_path / "back", **back)
    seconds = [event["seconds"] for event in events]
    assert seconds == sorted(seconds) and 3 < progress.step < 100
    forth = {"max_steps": None, "max_seconds": 1e4, "clock": BudgetClock(now=Jumping({20: 3600.0, 60: 7200.0}))}
    _, progress, events, _ = train(tmp_path / "forth", console=console, **forth)
    assert any("its clock jumped" in one and "took 3600 s" in one for one in console.said)
    assert events[-1]["seconds"] >= 1e4 and progress.step < 60  # the budget counts it and ends
