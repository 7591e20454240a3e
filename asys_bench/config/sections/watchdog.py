"""`watchdog`: when a worker counts as dead and how it comes back."""

from __future__ import annotations

from pydantic import Field

from asys_bench.config.sections.section import Integer, Number, Section


class WatchdogConfig(Section):
    """Heartbeats, restarts and their budget."""

    enabled: bool = Field(
        default=True, description="restart workers that die or hang; false only counts them"
    )
    tick_s: Number = Field(
        default=0.2, ge=0.01, le=10, description="time between two looks at the workers, in seconds"
    )
    heartbeat_timeout_s: Number = Field(
        default=10.0,
        gt=0,
        description="a worker silent for this long is killed and restarted, in seconds",
    )
    startup_timeout_s: Number = Field(
        default=60.0,
        gt=0,
        description="a worker must beat for the first time within this, in seconds",
    )
    restart_limit: Integer = Field(
        default=5,
        ge=0,
        le=1000,
        description="restarts of one worker within `restart_window_s`; then it is quarantined",
    )
    restart_window_s: Number = Field(
        default=60.0, gt=0, description="window in which restarts are counted, in seconds"
    )
    backoff_initial_s: Number = Field(
        default=0.1,
        ge=0,
        description="wait before the first restart in seconds; doubled for each further one",
    )
    backoff_max_s: Number = Field(
        default=5.0, ge=0, description="longest wait before a restart, in seconds"
    )

    def backoff_s(self, restarts: int) -> float:
        """Wait before the next restart after `restarts` earlier ones, in seconds."""
        return min(self.backoff_max_s, self.backoff_initial_s * 2.0 ** min(restarts, 64))
