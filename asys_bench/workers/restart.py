"""When a dead worker may start again: capped exponential backoff within a budget."""

from __future__ import annotations

from collections import deque

from asys_bench.config.sections.watchdog import WatchdogConfig


class RestartBudget:
    """At most `restart_limit` restarts in any `restart_window_s`."""

    def __init__(self, config: WatchdogConfig) -> None:
        self._config = config
        self._restarts: deque[float] = deque()

    def next_delay_s(self, now_s: float) -> float | None:
        """Seconds to wait before the next start; None when the budget is used up (quarantine).

        now_s: seconds on any monotonic clock. The delay doubles with each restart that is still
        inside the window.
        """
        while self._restarts and now_s - self._restarts[0] > self._config.restart_window_s:
            self._restarts.popleft()
        used = len(self._restarts)
        if used >= self._config.restart_limit:
            return None
        self._restarts.append(now_s)
        return self._config.backoff_s(used)
