"""The host's side of a flight recorder: more samples for a while, because a worker asks for them.

The worker of an `alarm` sink writes a deadline into its slot of the stats page. The host looks at it at each
step (a read of memory), lets every hook's rate go up to what bus and row budget allow, and takes that back at
its first step after the deadline, whatever became of the worker.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from asys_bench.capture.hooker import ActivationHooker
from asys_bench.capture.tags.clock import StepClock
from asys_bench.contracts.stats import Slot, StatsPage
from asys_bench.monitors.alarm_page import Place, recording_until


class RaisedSampling:
    """Call it at each host step.

    until: where each worker's deadline is, in nanoseconds of this process's CLOCK_MONOTONIC; 0: none yet.
    raise_rates: told True when hooks may sample more, and False when no longer.
    """

    __slots__ = ("_cell", "_cells", "_deadline", "_is_raised", "_others", "_raise_rates", "_times")

    def __init__(
        self, until: Sequence[Place], slot: Slot, raise_rates: Callable[[bool], None]
    ) -> None:
        (self._cells, self._cell), *self._others = until
        self._raise_rates = raise_rates
        self._times = slot.counter("sampling_raised")
        self._is_raised = slot.gauge("sampling_is_raised")
        self._is_raised.set(0.0)
        self._deadline = 0
        """Until when rates are raised; 0: they are not."""

    @classmethod
    def on_alarms(
        cls, page: StatsPage, slot: Slot, clock: StepClock, hooker: ActivationHooker
    ) -> None:
        """Look at each step of `clock`, where a worker may ask for more samples. The workers are up.

        slot: this host's.
        """
        deadlines = recording_until(page)
        if deadlines:
            clock.each_step = cls(deadlines, slot, hooker.raise_rates)

    def __call__(self) -> None:
        deadline = self._cells[self._cell] if not self._others else self._latest()
        if deadline == self._deadline == 0:
            return
        if time.monotonic_ns() < deadline:
            if not self._deadline:
                self._raise_rates(True)
                self._times.add()
                self._is_raised.set(1.0)
            self._deadline = deadline
        elif self._deadline:
            self._raise_rates(False)
            self._is_raised.set(0.0)
            self._deadline = 0

    def _latest(self) -> int:
        return max(cells[at] for cells, at in ((self._cells, self._cell), *self._others))
