"""The rate that follows the bus: settles near the ideal, does not swing, stays within its limits."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asys_bench.capture.sampling import HOLD_NS, FillController
from asys_bench.config.sections.hooks import SamplingConfig

SECOND = 1_000_000_000


def test_the_rate_is_a_tenth_at_the_high_watermark_and_whole_up_to_the_low_one():
    controller = FillController(SamplingConfig())
    controller.observe(0.5, 0)
    assert controller.rate == 1.0
    controller.observe(0.75, 0)
    assert controller.rate == pytest.approx(0.1)
    controller.observe(1.0, 0)
    assert controller.rate == pytest.approx(0.01)


def test_a_bus_that_was_full_for_a_moment_costs_nothing_afterwards():
    controller = FillController(SamplingConfig())
    controller.observe(0.7, 0)
    assert controller.rate < 0.2
    controller.observe(0.2, SECOND // 10)
    assert controller.rate > 0.98


def test_a_refusal_lowers_the_base_once_per_hold_time():
    controller = FillController(SamplingConfig())
    controller.refused(0)
    controller.refused(HOLD_NS - 1)
    assert controller.rate == 0.5
    controller.refused(HOLD_NS)
    assert controller.rate == 0.25


def test_the_base_recovers_additively_and_faster_the_emptier_the_bus():
    policy = SamplingConfig(increase_per_s=0.1, max_rate=0.8)
    rates = []
    for fill in (0.0, 0.25):
        controller = FillController(policy)
        controller.refused(0)
        controller.observe(fill, 0)
        controller.observe(fill, 2 * SECOND)
        rates.append(controller.rate)
        controller.observe(0.0, 100 * SECOND)
        assert controller.rate == 0.8
    assert rates == pytest.approx([0.6, 0.5])


def test_a_pause_of_the_host_is_no_evidence_of_a_full_bus():
    controller = FillController(SamplingConfig())
    controller.observe(0.75, 0)
    controller.observe(0.75, 1000 * SECOND)
    assert controller.rate == pytest.approx(0.1, rel=0.05)


def test_a_reader_that_stalls_never_fills_the_bus():
    """Three seconds in which an unsampled stream would fill the bus thrice; nothing is refused."""
    controller = FillController(SamplingConfig())
    fill, now = 0.0, 0
    for _ in range(3000):
        now += SECOND // 1000
        fill += 0.001 * controller.rate
        controller.observe(fill, now)
    assert fill < 1.0
    assert controller.rate < 0.1


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1), st.integers(0, 10**10)), max_size=200))
def test_the_rate_never_leaves_its_limits(events):
    policy = SamplingConfig(min_rate=0.05, max_rate=0.9)
    controller = FillController(policy)
    now = 0
    for is_refused, fill, passed in events:
        now += passed
        if is_refused:
            controller.refused(now)
        else:
            controller.observe(fill, now)
        assert policy.min_rate <= controller.rate <= policy.max_rate


class Simulation:
    """A hook that is called `load` times per second, and a reader of `service` packets per second."""

    def __init__(self, load, service, capacity, hooks=1, seed=1):
        self.load, self.service, self.capacity = load, service, capacity
        self.controllers = [FillController(SamplingConfig()) for _ in range(hooks)]
        self.waiting = [1] * hooks
        self.queue, self.time, self.drops = 0.0, 0.0, 0
        self.random = random.Random(seed).random

    def run(self, seconds):
        """(time, mean rate of the hooks) about a hundred times per second."""
        history = []
        for call in range(int(seconds * self.load)):
            self.time += 1 / self.load
            self.queue = max(0.0, self.queue - self.service / self.load)
            turn = call % len(self.controllers)
            controller = self.controllers[turn]
            now = int(self.time * SECOND)
            if self.random() < controller.rate:
                if self.queue + 1 <= self.capacity:
                    self.queue += 1
                else:
                    self.drops += 1
                    controller.refused(now)
            self.waiting[turn] -= 1
            if self.waiting[turn] <= 0:
                controller.observe(self.queue / self.capacity, now)
                self.waiting[turn] = controller.calls_to_next
            if call % max(1, self.load // 100) == 0:
                rates = [c.rate for c in self.controllers]
                history.append((self.time, sum(rates) / len(rates)))
        return history


@pytest.mark.parametrize(
    ("fill", "calls"), [(0.0, 16), (0.25, 16), (0.3, 4), (0.6, 10), (0.75, 16), (1.0, 16)]
)
def test_it_looks_at_a_filling_bus_after_four_captured_calls_at_most(fill, calls):
    controller = FillController(SamplingConfig(low_watermark=0.5, high_watermark=0.75))
    controller.observe(fill, 0)
    assert controller.calls_to_next == calls
    assert fill <= 0.25 or controller.calls_to_next * controller.rate <= 4.5


def test_a_quick_host_checks_a_steady_bus_some_hundred_times_a_second_and_a_changing_one_at_once():
    controller, now = FillController(SamplingConfig(low_watermark=0.5, high_watermark=0.75)), 0
    periods = []
    for _ in range(60):
        controller.observe(0.6, now)
        periods.append(controller.calls_to_next * 150_000)  # a call takes 150 us
        now += periods[-1]
    assert 5_000_000 <= periods[-1] <= 10_000_000
    controller.observe(0.65, now)
    assert controller.calls_to_next * controller.rate <= 4.5
    for _ in range(60):
        controller.observe(0.65, now)
        now += controller.calls_to_next * 50_000_000
    assert controller.calls_to_next * controller.rate <= 4.5, "a slow host checks as ever"


def settling_time(history, ideal, start=0.0, tolerance=0.2):
    """Seconds after `start` from which on the rate stays within `tolerance` of the ideal."""
    outside = [t for t, rate in history if abs(rate / ideal - 1) > tolerance]
    return (outside[-1] if outside else start) - start


SLOW_READERS = [
    # load/s, service/s, capacity, hooks, settled after s
    (2000, 1000, 4096, 1, 4),
    (2000, 200, 4096, 1, 6),
    (20000, 2000, 4096, 1, 2),
    (4000, 400, 4096, 8, 6),
    (1000, 250, 2048, 1, 5),
]


@pytest.mark.parametrize(("load", "service", "capacity", "hooks", "settled"), SLOW_READERS)
def test_the_rate_settles_within_20_percent_of_the_ideal_and_stays_there(
    load, service, capacity, hooks, settled
):
    simulation = Simulation(load, service, capacity, hooks)
    history = simulation.run(60 if load < 10000 else 20)
    ideal = service / load
    assert settling_time(history, ideal) <= settled
    tail = [rate for t, rate in history if t > settled]
    assert max(tail) - min(tail) <= 0.4 * ideal
    assert simulation.drops == 0


def test_the_rate_follows_a_reader_that_becomes_slower_and_faster_again():
    simulation = Simulation(2000, 1000, 4096)
    simulation.run(20)
    simulation.service = 250
    slower = simulation.run(30)
    assert settling_time(slower, 0.125, start=20.0) <= 8
    simulation.service = 1000
    faster = simulation.run(60)
    assert settling_time(faster, 0.5, start=50.0) <= 25
    assert simulation.drops == 0


def test_sampling_leaves_the_hosts_generators_alone():
    before = random.getstate(), torch.random.get_rng_state()
    Simulation(1000, 100, 1024).run(2)
    assert random.getstate() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])
