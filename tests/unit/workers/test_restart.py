"""The restart budget: backoff, window, quarantine."""

from __future__ import annotations

from asys_bench.config.sections.run import WatchdogConfig
from asys_bench.workers.restart import RestartBudget


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
