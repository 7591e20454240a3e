"""A paused observation captures nothing, counts what it leaves out, and counts no steps."""

from __future__ import annotations

import pytest
import torch

from asys_bench.capture.hooks.root_hook import ForwardCalls
from asys_bench.capture.tags.clock import StepClock
from asys_bench.contracts.packet import CONSTANT_MICROBATCH
from asys_bench.contracts.stats import StatsPage


@pytest.mark.parametrize("backend", ["mp_queue", "cpp_spmc"])
@pytest.mark.parametrize("capture", ["activation", "input", "gradient", "input_gradient"])
@pytest.mark.parametrize("phase", ["any", "train"])
def test_every_kind_of_hook_skips_and_counts_the_calls_of_a_pause(rig, backend, capture, phase):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    observed = rig(model, {"match": "1", "capture": capture, "phase": phase}, backend=backend)
    for step, paused in enumerate((False, True, True, False)):
        observed.clock.paused = paused
        model(torch.full((step + 1, 3), 1.0)).sum().backward()
    name = observed.points[0].name
    assert [p.tensor.shape[0] for p in observed.packets()] == [1, 4]
    assert (observed.value("calls", name), observed.value("skipped", name)) == (4, 2)
    assert observed.is_accounted_for(name)


def test_a_gradient_comes_though_its_backward_pass_is_in_a_pause(rig):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4))
    observed = rig(model, {"match": "0", "capture": "gradient"})
    loss = model(torch.ones(2, 3)).sum()
    observed.clock.paused = True
    loss.backward()
    assert [p.tensor.shape[0] for p in observed.packets()] == [2]


def test_a_pause_switches_nothing_on(rig):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4))
    observed = rig(model, {"match": "0"})
    (stream,) = observed.hooker._streams
    stream.fail(RuntimeError("broken"))
    observed.clock.paused = True
    observed.clock.paused = False
    model(torch.ones(2, 3))
    assert stream.off
    assert observed.value("calls", "0") == 0


@pytest.fixture
def clock():
    page = StatsPage.create(["host"])
    yield StepClock(page.slot("host"), 40)
    page.close()


def test_calls_in_a_pause_are_neither_steps_nor_microbatches(clock):
    net = torch.nn.Sequential(torch.nn.Linear(3, 4))
    calls = ForwardCalls(clock, [net])
    calls.attach_begin()
    calls.attach_end()
    clock.count_calls()
    for paused in (False, True, True, False):
        clock.paused = paused
        net(torch.ones(1, 3))
        clock.forward_started()
    clock.end_counting()
    assert (clock.host_step, clock.steps_made) == (42, 2)
    clock.paused = True
    clock.forward_started()
    clock.forward_started()
    assert clock.microbatch == 0


def test_a_clock_starts_at_the_hosts_step_and_goes_to_those_that_it_names(clock):
    assert clock.tags[0] == 40
    assert clock.steps_made == 0
    tags = clock.tags
    clock.step_to(40)
    assert clock.tags is tags
    clock.forward_started()
    clock.forward_started()
    clock.step_to(43)
    assert clock.tags[:3] == (43, 0, 0)
    clock.step(2)
    assert (clock.host_step, clock.steps_made) == (45, 5)


@pytest.mark.parametrize("backend", ["mp_queue", "cpp_spmc"])
@pytest.mark.parametrize("capture", ["activation", "input"])
def test_packets_of_the_constant_batch_say_so_and_count_as_nothing_else(rig, backend, capture):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4))
    observed = rig(model, {"match": "0", "capture": capture}, backend=backend)
    clock = observed.clock
    clock.step_to(7)
    model(torch.ones(2, 3))
    clock.constant = True
    with torch.no_grad():
        model(torch.ones(5, 3))
        model(torch.ones(6, 3))
    clock.constant = False
    model(torch.ones(3, 3))
    packets = [(len(p.tensor), p.microbatch, p.call, p.step) for p in observed.packets()]
    constant = CONSTANT_MICROBATCH
    assert packets == [(2, 0, 0, 7), (5, constant, 0, 7), (6, constant, 1, 7), (3, 1, 0, 7)]


def test_the_constant_batch_begins_no_step_and_no_microbatch(clock):
    net = torch.nn.Sequential(torch.nn.Linear(3, 4))
    calls = ForwardCalls(clock, [net])
    calls.attach_begin()
    calls.attach_end()
    clock.count_calls()
    for constant in (False, True, True, False):
        clock.constant = constant
        net(torch.ones(1, 3))
    assert clock.host_step == 41
    assert not clock.paused


@pytest.mark.parametrize("backend", ["mp_queue", "cpp_spmc"])
@pytest.mark.parametrize("phase", ["any", "train"])
def test_the_compiled_path_pauses_as_the_general_one_does(rig, backend, phase):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4))
    observed = rig(model, {"match": "0", "phase": phase}, backend=backend)
    clock = observed.clock
    for rows in range(1, 9):
        clock.paused = rows % 2 == 0
        clock.step_to(rows)
        model(torch.ones(rows, 3))
    assert [(p.step, len(p.tensor)) for p in observed.packets()] == [(n, n) for n in (1, 3, 5, 7)]
    assert observed.value("skipped", "0") == 4
    assert observed.is_accounted_for("0")


def test_a_clock_outlives_its_run():
    page = StatsPage.create(["host"])
    clock = StepClock(page.slot("host"), 40)
    page.close()
    clock.step_to(41)
    clock.step()
    assert clock.host_step == 42
