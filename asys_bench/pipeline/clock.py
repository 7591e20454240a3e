"""The step clock: where in its loop the host is, for the tags of packets, counters and a stop request.

A packet's tags are what the clock says when the module's forward is called; a gradient carries those
of the forward call that it belongs to.
"""

from __future__ import annotations

import logging
import struct
import sys
from collections.abc import Callable

from asys_bench.contracts.capture_port import CLOCK_CELLS
from asys_bench.contracts.packet import NO_TOKEN_POSITION
from asys_bench.contracts.stats import Slot

log = logging.getLogger(__name__)

Tags = tuple[int, int, int, int]
"""(host_step, weights_version, microbatch, token_position)"""

_MAX_MICROBATCH = 2**16 - 1
_MAX_POSITION = 2**31 - 1
_CELLS = struct.Struct(f"{CLOCK_CELLS}q")


class StepClock:
    """Implements `contracts.host.HostClock` over the host's slot of the stats page.

    tags: replaced whenever one of its parts changes, so that "is it the same object" means "is it
    the same forward pass".
    serial: counts those changes.
    cells: serial and tags for compiled readers (`contracts.capture_port.CLOCK_*`).
    first_step: number of the step that the host is in when the clock starts (a resumed training).
    paused: the host is aside from its own work (a validation): its calls of the model count neither
    as steps nor as microbatches.
    """

    def __init__(self, slot: Slot, first_step: int = 0) -> None:
        self.first_step = self.host_step = first_step
        self.paused = False
        self.weights_version = 0
        self.should_stop = False
        self.tags: Tags = (first_step, 0, 0, NO_TOKEN_POSITION)
        self.serial = 0
        self._buffer = bytearray(_CELLS.size)
        self.cells = memoryview(self._buffer).cast("q")
        self._microbatch = 0
        self._token_position = NO_TOKEN_POSITION
        self._forwards = 0
        self._host_counts_microbatches = False
        self._alarm_step = sys.maxsize
        self._alarm: Callable[[int], int | None] | None = None
        self._slot = slot
        self._retag()
        self._steps = slot.counter("host_steps")
        self._versions = slot.counter("weights_version")
        self._steps.set(first_step)

    @property
    def steps_made(self) -> int:
        """Host steps since the clock started."""
        return self.host_step - self.first_step

    def step(self, n: int = 1) -> None:
        self._move(self.host_step + n)

    def step_to(self, host_step: int) -> None:
        """The host is in step `host_step` of its own count; nothing changes if it was already."""
        if host_step != self.host_step:
            self._move(host_step)

    def weights_updated(self) -> None:
        self.weights_version += 1
        self._retag()
        self._versions.set(self.weights_version)

    def report(self, name: str, value: float) -> None:
        self._slot.gauge(f"host_{name}").set(value)

    @property
    def microbatch(self) -> int:
        """Index of the forward pass within the host step, 0..65535 (more stay at the last).

        Calls of the observed model are counted. A host that accumulates gradients in another
        rhythm sets it, and from then on sets it always; `step` starts at 0 again.
        """
        return self._microbatch

    @microbatch.setter
    def microbatch(self, value: int) -> None:
        self._host_counts_microbatches = True
        self._microbatch = max(0, min(int(value), _MAX_MICROBATCH))
        self._retag()

    @property
    def token_position(self) -> int:
        """Position in its sequence of the first token that the next forward pass sees; -1: unknown.

        A host that decodes with a key-value cache sets it before each forward pass.
        """
        return self._token_position

    @token_position.setter
    def token_position(self, value: int) -> None:
        self._token_position = max(NO_TOKEN_POSITION, min(int(value), _MAX_POSITION))
        self._retag()

    def forward_started(self) -> None:
        """The observed model is called: the next microbatch, unless the host counts them itself."""
        if self._host_counts_microbatches or self.paused:
            return
        self._forwards += 1
        microbatch = min(self._forwards - 1, _MAX_MICROBATCH)
        if microbatch != self._microbatch:
            self._microbatch = microbatch
            self._retag()

    def call_at(self, step: int, alarm: Callable[[int], int | None]) -> None:
        """Call ``alarm(host_step)`` once the host has made `step` steps; it returns the step at
        which it wants to be called again, or None."""
        self._alarm_step, self._alarm = step, alarm

    def _move(self, host_step: int) -> None:
        self.host_step = host_step
        self._forwards = self._microbatch = 0
        self._retag()
        self._steps.set(host_step)
        self._slot.beat()
        if host_step >= self._alarm_step:
            self._ring()

    def _retag(self) -> None:
        self.serial += 1
        self.tags = (
            self.host_step,
            self.weights_version,
            self._microbatch,
            self._token_position,
        )
        _CELLS.pack_into(self._buffer, 0, self.serial, *self.tags)

    def _ring(self) -> None:
        alarm, self._alarm_step = self._alarm, sys.maxsize
        try:
            again = alarm(self.host_step) if alarm is not None else None
        except Exception as error:  # noqa: BLE001 - nothing of ours may reach the host
            log.debug("an alarm of the step clock failed: %s", error)
            return
        self._alarm_step = sys.maxsize if again is None else again
