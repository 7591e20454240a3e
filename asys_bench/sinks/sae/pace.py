"""How fast an SAE trains here, against how fast its rows come and the time that is left.

An SAE of d_in 4096 and d_sae 32768 takes many seconds a step on one core: longer than a worker may be
silent, and longer than it gets to end. It is measured before the first step and said, and the
heartbeat before each such step covers it.
"""

from __future__ import annotations

import logging
import time

from asys_bench.sae.config import SAEConfig
from asys_bench.sae.footprint import footprint, step_seconds

log = logging.getLogger(__name__)

SLOW_STEP_S = 2.0
REST_OF_STEP = 2.0
"""A step is about this many times its encoder's product."""
MARGIN = 4.0
"""Silence that is promised, in steps; the first one also starts the SAE."""
LONGEST_PROMISE_S = 300.0
WRITE_BYTES_PER_S = 150e6
"""Slow disk, checksums included."""
LEAST_SECONDS = 5.0
"""Rates over less than this say nothing."""


class Pace:
    """Of one SAE. Times are seconds."""

    def __init__(
        self, label: str, config: SAEConfig, *, on_gpu: bool = False, ranks: int = 1
    ) -> None:
        """ranks: processes that share a step."""
        self._label, self._config, self._on_gpu, self._ranks = label, config, on_gpu, ranks
        self.step_s: float | None = None
        """Forecast before the first step, then measured."""
        self.save_s = 0.0
        """A checkpoint's writing, forecast."""
        self._since: float | None = None

    def forecast(self, d_in: int) -> None:
        """The first rows are there. Costs some milliseconds once."""
        if self._since is not None:
            return
        self._since = time.monotonic()
        size = footprint(self._config, d_in)
        if not self._on_gpu:  # a step there is measured, not forecast
            self.step_s = REST_OF_STEP * step_seconds(self._config, d_in) / self._ranks
        self.save_s = size.checkpoint_bytes / WRITE_BYTES_PER_S
        if self.step_s is not None and self.step_s > SLOW_STEP_S:
            log.warning(
                "%s: a step of %d rows takes about %.0f s here (d_in %d, d_sae %d): this trainer makes "
                "about %.0f rows/s. Lower d_sae or expansion_factor, or raise sae.threads; a run that "
                "ends within a step needs run.drain_timeout_s of %.0f or more",
                self._label,
                self._config.batch_rows,
                self.step_s,
                size.d_in,
                size.d_sae,
                self._config.batch_rows / self.step_s,
                2 * (2 * self.step_s + self.save_s),
            )

    def stepped(self, steps: int, seconds: float) -> None:
        """`steps` took `seconds`."""
        if steps:
            self.step_s = seconds / steps

    @property
    def promise_s(self) -> float:
        """How long the next step may be silent beyond the usual; 0 for steps of no length."""
        if self.step_s is None or self.step_s < SLOW_STEP_S / 4:
            return 0.0
        return min(LONGEST_PROMISE_S, MARGIN * self.step_s)

    def final_words(self, steps: int, rows: int, saes: int) -> str | None:
        """What a person should know at the end: never trained, or slower than the host; else None.

        rows: that came. saes: which share the worker.
        """
        if self.step_s is None or self._since is None:
            return None
        batch = self._config.batch_rows
        passed_s = time.monotonic() - self._since
        ours, theirs = batch / max(self.step_s, 1e-9) / saes, rows / max(passed_s, 1e-9)
        speed = f"this trainer makes {ours:.0f} rows/s, the host {theirs:.0f}"
        if steps == 0 and rows < batch:
            return f"never trained: {rows} rows came, and a step takes {batch} (sae.batch_rows)"
        if steps == 0:
            return f"never finished a step: one takes about {self.step_s:.1f} s here; {speed}"
        if ours < theirs and passed_s > LEAST_SECONDS:
            return (
                f"{speed}: most rows are never trained on. Lower d_sae or batch_rows, raise "
                "sae.threads, or set hooks[].sampling.max_rows_per_s"
            )
        return None
