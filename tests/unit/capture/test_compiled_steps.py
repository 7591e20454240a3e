"""The compiled methods of a step do what those in Python do, to every attribute."""

from __future__ import annotations

import gc
import sys
import threading
import time
import weakref
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asys_bench.capture.hooks.own_hooks import ForwardStandIn
from asys_bench.capture.tags import clock as clocks
from asys_bench.capture.tags import optimizer_watch
from asys_bench.capture.tags.clock import StepClock
from asys_bench.capture.tags.moments import Moments
from asys_bench.capture.tags.optimizer_watch import OptimizerWatch
from asys_bench.contracts.capture_port import CLOCK_OWNER
from asys_bench.contracts.stats import SlotField, StatsPage
from asys_bench.hosts import rollout_labels
from asys_bench.hosts.rollout_labels import HELD_STEPS, RolloutLabels

pytestmark = pytest.mark.skipif(clocks.clock_methods is None, reason="it was not compiled")


class InPython(StepClock):
    step = clocks.IN_PYTHON["step"]
    step_to = clocks.IN_PYTHON["step_to"]
    weights_updated = clocks.IN_PYTHON["weights_updated"]


class WatchInPython(OptimizerWatch):
    stepped = optimizer_watch.IN_PYTHON


class StandInInPython(ForwardStandIn):
    """A class of its own, which nobody has given compiled calls."""

    def __call__(self, *args, **kwargs):
        return ForwardStandIn.__call__(self, *args, **kwargs)


class LabelsInPython(RolloutLabels):
    stepped = rollout_labels.IN_PYTHON


APART = {
    "__dict__", "_buffer", "lock", "_threads", "_slot", "_page", "each_step", "rounds", "_alarm",
}  # fmt: skip


def whose(ident: int) -> str:
    """A thread's number is another for each thread."""
    return {0: "nobody", threading.get_ident(): "this thread"}.get(ident, "another")


def shown(clock: StepClock) -> dict[str, object]:
    """All that a clock knows, as plain values."""
    known = {name: getattr(clock, name) for name in StepClock.__slots__ if name not in APART}
    moment, aside, moments = clock._moment, clock._aside, clock.moments
    cells = list(clock.cells)
    cells[CLOCK_OWNER] = whose(cells[CLOCK_OWNER])
    return known | {
        "cells": cells,
        "owner": whose(clock.owner),
        "_home": whose(clock._home),
        "_moment": (moment.calls, moment.texts),
        "_aside": aside and (aside[0], aside[1].calls),
        "moments": moments and (moments.version_at(clock.host_step), moments.noted_to),
        "tags are now": clock.tags is clock._now,
        "counted": clock._slot.get(clock._steps_cell),
        "updates": clock._slot.get(clock._versions_cell),
    }


def elsewhere(action):
    thread = threading.Thread(target=action)
    thread.start()
    thread.join()


class Twins:
    """A compiled clock and one in Python that are told the same."""

    def __init__(self) -> None:
        self.page = StatsPage.create(["host", "twin"])
        self.clocks = [StepClock(self.page.slot("host"), 7), InPython(self.page.slot("twin"), 7)]
        self.told: list[list[object]] = [[], []]
        self.frames: list[list[object]] = [[], []]

    def __iter__(self):
        return iter(zip(self.clocks, self.told, self.frames, strict=True))

    def do(self, action: str, number: int) -> None:
        for clock, told, frames in self:
            if action == "step":
                clock.step(number % 5)
            elif action == "one step":
                clock.step()
            elif action == "step_to":
                clock.step_to(number)
            elif action == "numpy":
                clock.step_to(host_step=int(np.int64(number)))
            elif action == "elsewhere":
                elsewhere(lambda clock=clock: clock.step(n=number % 3))
            elif action == "updated":
                clock.weights_updated()
            elif action == "microbatch":
                clock.microbatch = number
            elif action == "position":
                clock.token_position = number
            elif action == "constant":
                clock.constant = number % 2 == 0
            elif action == "paused":
                clock.paused = number % 2 == 0
            elif action == "begin":
                frames.append(clock.begin_call(counts_forwards=number % 2 == 0))
            elif action == "end" and frames:
                clock.end_call(frames.pop())
            elif action == "each step":
                clock.each_step = (lambda told=told: told.append("each")) if number % 2 else None
            elif action == "fails":
                clock.each_step = lambda: 1 / 0
            elif action == "rounds":
                clock.rounds = (lambda step, told=told: told.append(step)) if number % 2 else None
            elif action == "alarm":
                clock.call_at(number, lambda step, told=told: told.append(("alarm", step)))
            elif action == "count":
                clock.count_calls()
            elif action == "labels":
                clock.moments = Moments(100)

    def check(self) -> None:
        first, second = map(shown, self.clocks)
        assert first == second
        assert self.told[0] == self.told[1]

    def close(self) -> None:
        self.page.close()


ACTIONS = (
    "step", "one step", "step_to", "numpy", "elsewhere", "updated", "microbatch", "position", "constant",
    "paused", "begin", "end", "each step", "fails", "rounds", "alarm", "count", "labels",
)  # fmt: skip
OFTEN = ("step", "one step", "step_to", "updated")


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from(ACTIONS + OFTEN * 4), st.integers(0, 1 << 40)), max_size=40)
)
def test_a_compiled_step_leaves_the_clock_as_one_in_python_does(actions):
    twins = Twins()
    try:
        for action, number in actions:
            twins.do(action, number)
            twins.check()
    finally:
        twins.close()


def test_a_step_is_a_heartbeat_and_counted():
    page = StatsPage.create(["host"])
    slot = page.slot("host")
    clock = StepClock(slot)
    slot.beat(ahead_s=5.0)
    before = time.monotonic_ns()
    clock.step(3)
    assert before <= slot.get(SlotField.HEARTBEAT_NS) <= time.monotonic_ns()
    assert slot.get(SlotField.AHEAD_NS) == 0
    assert slot.counter("host_steps").value == 3
    page.close()


@pytest.mark.parametrize("kind", [StepClock, InPython])
def test_steps_after_the_runs_end_are_nothing(kind):
    page = StatsPage.create(["host"])
    clock = kind(page.slot("host"))
    page.close()
    clock.step()
    clock.step_to(9)
    clock.weights_updated()
    assert (clock.host_step, clock.weights_version) == (9, 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda clock: clock.step(1, 2),
        lambda clock: clock.step(m=1),
        lambda clock: clock.step(1.5),
        lambda clock: clock.step_to(),
        lambda clock: clock.step_to("9"),
        lambda clock: clock.step_to(step=9),
    ],
)
def test_what_is_no_step_is_a_type_error_and_changes_nothing(call):
    page = StatsPage.create(["host"])
    clock = StepClock(page.slot("host"), 4)
    before = shown(clock)
    with pytest.raises(TypeError):
        call(clock)
    assert shown(clock) == before
    assert clock.lock.acquire(blocking=False)
    clock.lock.release()
    page.close()


def test_a_step_that_is_too_large_leaves_the_clock_unlocked():
    page = StatsPage.create(["host"])
    clock = StepClock(page.slot("host"))
    with pytest.raises(OverflowError):
        clock.step_to(1 << 63)
    assert clock.host_step == 0
    elsewhere(lambda: clock.step())
    assert clock.host_step == 1
    page.close()


@pytest.fixture
def nothing_collected():
    """No garbage of other tests goes meanwhile, and with it references to None."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_a_reference_is_neither_lost_nor_kept(nothing_collected):
    page = StatsPage.create(["host"])
    clock = StepClock(page.slot("host"), 10_000)
    labels = RolloutLabels(lambda **_: None, 100_000)
    seen = {name: np.zeros(1) for name in ("rewards", "dones", "actions")}
    watched = (None, False, clocks._Moment, seen["rewards"])
    for _ in range(3):  # what is made once is made
        clock.step()
        labels.stepped(clock.host_step, seen)
    before = [sys.getrefcount(one) for one in watched]
    for _ in range(2_000):
        clock.step()
        clock.weights_updated()
        labels.stepped(clock.host_step, seen)
    labels.flush()
    after = [sys.getrefcount(one) for one in watched]
    assert [round((b - a) / 2_000, 1) for a, b in zip(before, after, strict=True)] == [0.0] * 4
    assert sys.getrefcount(clock.tags) == 4  # tags, _now, and the call's own
    page.close()


# ---- steps of optimizers


def optimizer_of(module):
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return torch.optim.SGD(module.parameters(), 0.1)


@pytest.mark.parametrize("kind", [OptimizerWatch, WatchInPython])
@pytest.mark.parametrize("clock_kind", [StepClock, InPython])
def test_steps_of_the_models_optimizers_are_counted_and_of_no_others(kind, clock_kind):
    page = StatsPage.create(["host"])
    clock = clock_kind(page.slot("host"))
    clock.moments = Moments(10)
    model, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    mine, second, theirs = map(optimizer_of, (model, model, other))
    watch = kind(model, clock)
    watch.attach()
    try:
        for number, optimizer in enumerate(
            [mine, mine, theirs, mine, second, second, theirs, mine]
        ):
            optimizer.step()
            if number == 3:
                clock.step()
        assert clock.weights_version == clock._slot.counter("weights_version").value == 6
        assert [clock.moments.version_at(step) for step in (0, 1)] == [3, 6]
        del mine, second, optimizer
        gc.collect()
        optimizer_of(model).step()
        assert clock.weights_version == 7
    finally:
        watch.detach()
    optimizer_of(model).step()
    assert clock.weights_version == 7
    page.close()


@pytest.mark.parametrize("kind", [OptimizerWatch, WatchInPython])
def test_a_clock_that_fails_ends_the_counting_and_not_the_optimizer(kind, caplog):
    page = StatsPage.create(["host"])
    clock = StepClock(page.slot("host"))
    model = torch.nn.Linear(2, 2)
    optimizer, watch = optimizer_of(model), kind(model, clock)
    watch.attach()
    optimizer.step()
    clock.weights_version = None
    optimizer.step()
    assert "optimizer steps are no longer counted, after TypeError" in caplog.text
    clock.weights_version = 1
    optimizer.step()
    assert clock.weights_version == 1
    assert clock.lock.acquire(blocking=False)
    clock.lock.release()
    page.close()


# ---- a module's forward


@pytest.mark.parametrize("kind", [ForwardStandIn, StandInInPython])
def test_a_stand_in_calls_forward_then_the_hook(kind):
    seen = []
    module = torch.nn.Linear(2, 3)
    undo = kind(module, lambda *told: seen.append(told)).attach()
    x = torch.ones(4, 2)
    for args, keywords in (((x,), {}), ((), {"input": x})):
        output = module(*args, **keywords)
        assert output.shape == (4, 3)
        assert seen[-1][0] is module
        assert seen[-1][1] == args
        assert seen[-1][2] is output
    with pytest.raises(TypeError, match="positional argument"):
        module()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        module(torch.ones(4, 9))
    assert len(seen) == 2
    undo()
    module(x)
    assert len(seen) == 2
    with pytest.raises(ZeroDivisionError):
        kind(module, lambda *_: 1 / 0)(x)


def test_a_stand_in_keeps_no_reference():
    module = torch.nn.Linear(2, 3)
    stand_in, x = ForwardStandIn(module, lambda *_: None), torch.ones(4, 2)
    before = [sys.getrefcount(one) for one in (module, x, stand_in, stand_in.hook)]
    for _ in range(100):
        stand_in(x)
        stand_in(input=x)
    assert [sys.getrefcount(one) for one in (module, x, stand_in, stand_in.hook)] == before
    output = stand_in(x)
    assert sys.getrefcount(output) == 2
    assert weakref.ref(stand_in)() is stand_in, "whoever traces it may hold it so"


# ---- labels of a rollout


class Sent:
    def __init__(self) -> None:
        self.calls: list[tuple[object, dict[str, object]]] = []

    def __call__(self, *, step, **labels) -> None:
        told = {name: np.asarray(value).tolist() for name, value in labels.items()}
        self.calls.append((step, told))


@st.composite
def rollouts(draw):
    """Steps of environments whose number, type or presence of an array changes now and then."""
    steps = []
    for _ in range(draw(st.integers(1, 4))):
        environments = draw(st.sampled_from([1, 2, 3, 300]))
        kind = draw(st.sampled_from(["discrete", "box", "none", "list"]))
        dtype = draw(st.sampled_from([np.float32, np.float64]))
        done = draw(st.lists(st.booleans(), min_size=1, max_size=HELD_STEPS + 6))
        steps += [(environments, kind, dtype, one) for one in done]
    return steps


def seen_in(step, environments, kind, dtype, done):
    seen = {
        "rewards": np.arange(environments).astype(dtype) + step,
        "dones": np.full(environments, done),
        "infos": [{"won": step} for _ in range(environments)],
    }
    if kind == "discrete":
        seen["actions"] = np.full(environments, step)
    elif kind == "box":
        seen["actions"] = np.full((environments, 2), step, np.float32)
    elif kind == "list":
        seen["actions"] = [step] * environments
    return seen


@settings(max_examples=40)
@given(rollouts(), st.sampled_from([0, 40, 10_000]), st.booleans())
def test_compiled_labels_are_those_of_python(steps, horizon, columns):
    names = ["won"] if columns else []
    sent = Sent(), Sent()
    both = RolloutLabels(sent[0], horizon, names), LabelsInPython(sent[1], horizon, names)
    at = 0
    with mock.patch.object(rollout_labels, "monotonic", return_value=0.0):
        for environments, kind, dtype, done in steps:
            for labels in both:
                labels.stepped(at, seen_in(at, environments, kind, dtype, done))
            at += environments
    for labels in both:
        labels.flush()
    assert sent[0].calls == sent[1].calls
    assert both[0].state() == both[1].state()
