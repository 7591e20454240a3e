"""Tags: step, weights, microbatch, token position, and which call of a module it was."""

from __future__ import annotations

import pytest
import torch

from asys_bench.capture.tags.clock import StepClock
from asys_bench.contracts.stats import StatsPage


class Twice(torch.nn.Module):
    """Calls the same layer twice in a forward pass."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
        self.alias = self.layer

    def forward(self, x):
        return self.alias(self.layer(x))


def tags(packets):
    return [(p.step, p.version, p.microbatch, p.position, p.call) for p in packets]


@pytest.mark.parametrize("kind", ["activation", "input"])
def test_calls_of_a_reused_module_are_told_apart_within_each_forward_pass(rig, kind):
    model = Twice()
    observed = rig(model, {"match": "layer", "capture": kind})
    for _ in range(2):
        model(torch.randn(1, 4))
    observed.clock.weights_updated()
    observed.clock.step()
    model(torch.randn(1, 4))
    assert tags(observed.packets()) == [
        (0, 0, 0, -1, 0),
        (0, 0, 0, -1, 1),
        (0, 0, 1, -1, 0),
        (0, 0, 1, -1, 1),
        (1, 1, 0, -1, 0),
        (1, 1, 0, -1, 1),
    ]


@pytest.mark.parametrize("kind", ["gradient", "input_gradient"])
def test_gradients_carry_the_tags_of_their_forward_call(rig, kind):
    """As in pipeline parallelism: both forward passes first, then backward in another order."""
    model = Twice()
    observed = rig(model, {"match": "layer", "capture": kind})
    x = torch.randn(1, 4, requires_grad=True)
    losses = [model(x).sum() for _ in range(2)]
    observed.clock.weights_updated()
    observed.clock.step(10)
    for loss in losses:
        loss.backward()
    assert tags(observed.packets()) == [
        (0, 0, 0, -1, 1),
        (0, 0, 0, -1, 0),
        (0, 0, 1, -1, 1),
        (0, 0, 1, -1, 0),
    ]


def test_gradient_accumulation_counts_microbatches(rig):
    model = Twice()
    observed = rig(model, {"match": "layer", "capture": ["activation", "parameter_gradient"]})
    for _ in range(2):
        for _ in range(3):
            model(torch.randn(1, 4)).sum().backward()
        observed.clock.step()
    packets = observed.packets()
    weights = [p for p in packets if p.name == "layer.weight:grad"]
    assert [(p.step, p.microbatch) for p in weights] == [
        (step, micro) for step in range(2) for micro in range(3)
    ]
    activations = [p for p in packets if p.name == "layer"]
    assert [p.microbatch for p in activations] == [0, 0, 1, 1, 2, 2] * 2


def test_a_host_may_count_microbatches_itself(rig):
    model = Twice()
    observed = rig(model, {"match": "layer"})
    for micro in range(2):
        observed.clock.microbatch = micro
        model(torch.randn(1, 4))
        model(torch.randn(1, 4))
    observed.clock.step()
    model(torch.randn(1, 4))
    assert [(p.step, p.microbatch, p.call) for p in observed.packets()] == [
        (0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 0, 3),
        (0, 1, 0), (0, 1, 1), (0, 1, 2), (0, 1, 3),
        (1, 0, 0), (1, 0, 1),
    ]  # fmt: skip


def test_decoding_with_a_cache_marks_the_position_of_each_token(rig):
    model = torch.nn.Sequential(torch.nn.Identity())
    observed = rig(model, {"match": "0"})
    observed.clock.token_position = 0
    model(torch.randn(1, 5, 4))
    for position in range(5, 8):
        observed.clock.token_position = position
        model(torch.randn(1, 1, 4))
    assert [(p.position, p.call) for p in observed.packets()] == [(0, 0), (5, 0), (6, 0), (7, 0)]


@pytest.fixture
def clock():
    page = StatsPage.create(["host"])
    yield StepClock(page.slot("host"))
    page.close()


def test_the_tags_are_the_same_object_exactly_as_long_as_nothing_changed(clock):
    before = clock.tags
    clock.forward_started()
    assert clock.tags is before, "the first forward pass of a step is microbatch 0"
    clock.forward_started()
    second = clock.tags
    assert second == (0, 0, 1, -1)
    clock.step(0)
    assert clock.tags == (0, 0, 0, -1)
    assert clock.tags is not before


@pytest.mark.parametrize(
    ("given", "kept"), [(-5, -1), (2**40, 2**31 - 1), (torch.tensor(7), 7), (3.9, 3)]
)
def test_positions_that_no_packet_can_hold_are_brought_into_range(clock, given, kept):
    clock.token_position = given
    assert clock.token_position == clock.tags[3] == kept


def test_microbatches_past_the_last_that_a_packet_holds_stay_there(clock):
    clock.microbatch = 10**9
    assert clock.microbatch == clock.tags[2] == 2**16 - 2
    clock.microbatch = -1
    assert clock.microbatch == 0


def test_an_alarm_rings_at_its_step_and_when_it_asks_again(clock):
    rung = []

    def alarm(step):
        rung.append(step)
        return 20 if step < 20 else None

    clock.call_at(10, alarm)
    for _ in range(10):
        clock.step(4)
    assert rung == [12, 20]


def test_an_alarm_that_fails_is_not_the_hosts_problem(clock):
    def alarm(step):
        raise RuntimeError("no")

    clock.call_at(1, alarm)
    clock.step()
    clock.step()
