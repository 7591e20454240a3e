"""The restart budget: backoff, window, quarantine. Silence: what a process could have said."""

from __future__ import annotations

from asys_bench.config.sections.run import WatchdogConfig
from asys_bench.contracts.stats import SlotField, StatsPage
from asys_bench.workers import restart
from asys_bench.workers.restart import RestartBudget, Silence


def test_delays_double_up_to_the_cap_and_the_budget_ends_in_quarantine():
    config = WatchdogConfig(
        restart_limit=4, restart_window_s=60, backoff_initial_s=0.1, backoff_max_s=0.3
    )
    budget = RestartBudget(config)
    assert [budget.next_delay_s(float(t)) for t in range(5)] == [0.1, 0.2, 0.3, 0.3, None]


def test_deaths_outside_the_window_are_forgiven():
    budget = RestartBudget(WatchdogConfig(restart_limit=1, restart_window_s=10))
    assert budget.next_delay_s(0.0) is not None
    assert budget.next_delay_s(5.0) is None
    assert budget.next_delay_s(10.5) is not None


def test_a_process_is_not_silent_for_the_time_that_it_waited_for_a_cpu(monkeypatch):
    waited_ns = [5_000_000_000]
    monkeypatch.setattr(restart, "waited_for_cpu_ns", lambda pid: waited_ns[0])
    slot = StatsPage.create(["watchdog"]).slot("watchdog")
    slot.occupy()
    silence = Silence(slot)
    beat_ns = slot.get(SlotField.HEARTBEAT_NS)
    assert silence.measure(7, beat_ns + 1_000_000_000) == (1.0, 0.0)
    waited_ns[0] += 9_000_000_000
    assert silence.measure(7, beat_ns + 12_000_000_000) == (3.0, 9.0)
    slot.set(SlotField.HEARTBEAT_NS, beat_ns + 12_000_000_000)
    assert silence.measure(7, beat_ns + 12_500_000_000) == (0.5, 0.0)


def test_a_successor_is_not_excused_by_what_its_predecessor_waited(monkeypatch):
    waited_ns = {7: 0, 8: 90_000_000_000}
    monkeypatch.setattr(restart, "waited_for_cpu_ns", waited_ns.__getitem__)
    slot = StatsPage.create(["watchdog"]).slot("watchdog")
    slot.occupy()
    silence = Silence(slot)
    beat_ns = slot.get(SlotField.HEARTBEAT_NS)
    assert silence.measure(7, beat_ns) == (0.0, 0.0)
    assert silence.measure(8, beat_ns + 4_000_000_000) == (4.0, 0.0)
