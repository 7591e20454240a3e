"""The step clock: what host step it is, for packets, counters and a stop request."""

from __future__ import annotations

import logging

from asys_bench.contracts.stats import Slot

log = logging.getLogger(__name__)


class StepClock:
    """Implements `contracts.host.HostClock` over the host's slot of the stats page."""

    def __init__(self, slot: Slot) -> None:
        self.host_step = 0
        self.weights_version = 0
        self.should_stop = False
        self._slot = slot
        self._steps = slot.counter("host_steps")
        self._versions = slot.counter("weights_version")

    def step(self, n: int = 1) -> None:
        self.host_step += n
        self._steps.set(self.host_step)
        self._slot.beat()

    def weights_updated(self) -> None:
        self.weights_version += 1
        self._versions.set(self.weights_version)

    def report(self, name: str, value: float) -> None:
        self._slot.gauge(f"host_{name}").set(value)
