"""An alarm asks for more samples: rates go up to what bus and row budget allow, and come back."""

from __future__ import annotations

import time

import pytest
import torch

from asys_bench.capture import raised_sampling
from asys_bench.capture.raised_sampling import RaisedSampling
from asys_bench.capture.sampling import FillController
from asys_bench.config.sections.hooks import SamplingConfig
from asys_bench.contracts.stats import StatsPage
from asys_bench.monitors.alarm_page import AlarmsOnPage

SECOND = 1_000_000_000


def test_a_raised_ceiling_lets_the_rate_up_at_once_and_the_brake_still_holds():
    controller = FillController(SamplingConfig(max_rate=0.1))
    controller.observe(0.0, 0)
    assert controller.rate == 0.1
    controller.raise_ceiling(True)
    assert controller.calm_fill > 0
    controller.observe(0.2, SECOND)
    assert controller.rate == 1.0
    controller.observe(0.75, SECOND)
    assert controller.rate == pytest.approx(0.1)
    controller.raise_ceiling(False)
    controller.observe(0.0, 2 * SECOND)
    assert controller.rate == 0.1


def test_what_the_bus_has_taught_meanwhile_stays():
    controller = FillController(SamplingConfig(max_rate=0.5))
    controller.raise_ceiling(True)
    for second in range(5):
        controller.refused(second * SECOND)
    controller.raise_ceiling(False)
    controller.observe(0.5, 5 * SECOND)
    assert controller.rate == pytest.approx(1 / 32)


@pytest.fixture
def alarming(rig):
    """(rig, worker's deadline) of a model whose one hook samples at 0.05."""

    def make(on_full="sample", backend="cpp_spmc", **sampling):
        hook = {"match": ["0"], "sampling": {"max_rate": 0.05, **sampling}}
        model = torch.nn.Sequential(torch.nn.Linear(4, 4))
        bus = {"backend": backend, "on_full": on_full, "capacity_packets": 4096}
        made = rig(model, hook, **bus)
        page = StatsPage.create(["alarm-0"])
        pages.append(page)
        alarms = AlarmsOnPage(page.slot("alarm-0"))
        RaisedSampling.on_alarms(page, made.slot, made.clock, made.hooker)
        return made, alarms.until

    pages: list[StatsPage] = []
    yield make
    for page in pages:
        page.close()


def steps(rig, model, n):
    """`n` steps of one call each; the packets of them."""
    found = []
    for at in range(n):
        model(torch.ones(1, 4))
        rig.clock.step()
        if at % 1000 == 999:
            found += rig.packets()
    return found + rig.packets()


@pytest.mark.parametrize("backend", ["cpp_spmc", "mp_queue"])
def test_every_call_is_captured_while_the_recorder_runs_and_few_before_and_after(alarming, backend):
    rig, until = alarming(backend=backend)
    model = rig.points[0].model
    before = steps(rig, model, 300)
    until.set(time.monotonic_ns() + 600 * SECOND)
    steps(rig, model, 1)  # the host looks at the end of a step
    during = steps(rig, model, 200)
    assert rig.slot.gauge("sampling_is_raised").value == 1.0
    until.set(1)
    steps(rig, model, 1)
    after = steps(rig, model, 300)
    assert len(before) < 60
    assert len(during) >= 198
    assert len(after) < 60
    assert {round(packet.rate, 6) for packet in during[2:]} == {1.0}
    assert {round(packet.rate, 6) for packet in [*before, *after[2:]]} == {0.05}
    assert rig.slot.counter("sampling_raised").value == 1
    assert rig.slot.gauge("sampling_is_raised").value == 0.0
    assert rig.is_accounted_for("0")


def test_weights_of_one_over_rate_add_up_to_the_calls_through_a_recording(alarming):
    """Rates change between calls by what happened before them, never by the coin that they are tossed
    with: 4,000 calls, a fifth of them raised."""
    rig, until = alarming()
    model, weights = rig.points[0].model, 0.0
    for part in range(20):
        until.set(time.monotonic_ns() + 600 * SECOND if part % 5 == 4 else 1)
        weights += sum(1 / packet.rate for packet in steps(rig, model, 200))
    deviation = (3200 * (1 / 0.05 - 1)) ** 0.5
    assert weights == pytest.approx(4000, abs=4 * deviation)


def test_a_budget_of_rows_holds_while_the_recorder_runs(alarming):
    rig, until = alarming(max_rows_per_s=1.0)
    model = rig.points[0].model
    until.set(time.monotonic_ns() + 600 * SECOND)
    began = time.monotonic()
    while time.monotonic() < began + 1.5 or rig.value("calls", "0") <= 500:
        model(torch.ones(1, 4))
        rig.clock.step()
    found = rig.packets()
    calls = rig.value("calls", "0")
    assert calls > 500
    assert len(found) < 0.2 * calls


def test_the_host_ends_it_at_the_deadline_whatever_became_of_the_worker(alarming, monkeypatch):
    rig, until = alarming()
    model = rig.points[0].model
    now = [time.monotonic_ns()]
    monkeypatch.setattr(raised_sampling.time, "monotonic_ns", lambda: now[0])
    until.set(now[0] + SECOND)
    steps(rig, model, 1)
    assert rig.slot.gauge("sampling_is_raised").value == 1.0
    now[0] += SECOND
    steps(rig, model, 1)
    assert rig.slot.gauge("sampling_is_raised").value == 0.0
    assert len(steps(rig, model, 100)) < 30


def test_where_rates_do_not_follow_the_bus_they_stay(alarming):
    rig, until = alarming(on_full="drop")
    until.set(time.monotonic_ns() + 600 * SECOND)
    assert len(steps(rig, rig.points[0].model, 300)) < 60
    assert any("bus.on_full" in said for said in rig.hooker.notices.messages)


def test_without_an_alarm_sink_the_clock_looks_at_nothing(rig):
    made = rig(torch.nn.Sequential(torch.nn.Linear(4, 4)), {"match": ["0"]})
    RaisedSampling.on_alarms(made.page, made.slot, made.clock, made.hooker)
    assert made.clock.each_step is None


def test_a_failure_at_a_step_reaches_nobody(rig):
    made = rig(torch.nn.Sequential(torch.nn.Linear(4, 4)), {"match": ["0"]})

    def fail():
        raise OSError("no")

    made.clock.each_step = fail
    made.clock.step()
    assert made.clock.each_step is None
    assert made.clock.host_step == 1
