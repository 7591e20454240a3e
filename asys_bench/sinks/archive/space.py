"""A disk that takes no more bytes pauses the archiver; it does not end it.

1. WAIT. The write is repeated, with growing pauses. The lease is held meanwhile, and what comes after
   it waits in the bus.
2. DROP. After `hold_s` the bus would run full, which takes packets from every other sink and slows the
   sampling of the host. So the packets are given up here instead, and counted by reason.
3. RETURN. A write is tried again with growing pauses; when one succeeds the archive goes on.

Said once when it begins and once when it ends.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from asys_bench.contracts.sink import SinkContext
from asys_bench.system.files.atomic import WORDS, reason_of

log = logging.getLogger(__name__)
T = TypeVar("T")
SLICE_S = 0.2
"""Longest sleep between two heartbeats."""
LEAVE_S = 0.5
"""Stop waiting this long before the drain deadline, so that the lease can still be given back."""


class DiskRefusedError(Exception):
    """Nothing was written, and waiting any longer would hold up others. `reason`: see `refusal`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Patience:
    """Repeats writes that a disk refuses, beating the heart meanwhile.

    retry_s, retry_max_s: the first pause between attempts, doubled up to the second.
    hold_s: how long one attempt may take before its packets are given up; None: for ever.
    """

    def __init__(
        self, context: SinkContext, retry_s: float, retry_max_s: float, hold_s: float | None
    ) -> None:
        self._context = context
        self._retry_s, self._retry_max_s, self._hold_s = retry_s, retry_max_s, hold_s
        self._errors = context.slot.counter("archive_write_errors")
        self._paused_ns = context.slot.counter("archive_paused_ns")
        self._reason: str | None = None
        self._began = self._next_try = 0.0
        self._pause_s = retry_s
        self._dropped: tuple[int, int] = (0, 0)

    @property
    def refusing(self) -> str | None:
        """Why packets are given up unseen now; None when a write may be tried."""
        return self._reason if time.monotonic() < self._next_try else None

    def gave_up(self, packets: int, rows: int) -> None:
        """Remember for the closing message what was dropped."""
        self._dropped = self._dropped[0] + packets, self._dropped[1] + rows

    def attempt(self, what: str, action: Callable[[], T]) -> T:
        """`action()`, repeated while the disk refuses. It must leave nothing behind when it fails.

        Raises:
            DiskRefusedError: it still refuses after `hold_s`.
            OSError: another error, or the disk refuses at the drain deadline.
        """
        while True:
            try:
                result = action()
            except OSError as error:
                self._errors.add()
                why = str(error)  # not the exception: its frames hold the lease
                reason = reason_of(error)
                if reason is None:
                    raise
                if self._context.time_left_s() <= LEAVE_S:
                    log.error("cannot %s: %s (%s), and the run ends", what, WORDS[reason], why)
                    raise
            else:
                self._returned()
                return result
            self._refused(what, why, reason)

    def _refused(self, what: str, why: str, reason: str) -> None:
        """Pause before the next attempt, or give up."""
        now = time.monotonic()
        if self._reason is None:
            self._began, self._pause_s = now, self._retry_s
            after = (
                "" if self._hold_s is None else f"; after {self._hold_s:g} s packets are dropped"
            )
            log.warning(
                "cannot %s: %s (%s); paused and tried again until it is taken%s",
                what,
                WORDS[reason],
                why,
                after,
            )
        self._reason = reason
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, self._retry_max_s)
        if self._hold_s is not None and now + pause_s > self._began + self._hold_s:
            self._next_try = now + pause_s
            raise DiskRefusedError(reason)
        self._wait(pause_s)

    def _returned(self) -> None:
        if self._reason is None:
            return
        packets, rows = self._dropped
        log.warning(
            "the disk takes bytes again after %.1f s and the archive goes on; "
            "%d packets (%d rows) were not archived",
            time.monotonic() - self._began,
            packets,
            rows,
        )
        self._reason, self._dropped, self._next_try = None, (0, 0), 0.0

    def _wait(self, seconds: float) -> None:
        begin = now = time.monotonic_ns()
        until = begin + int(seconds * 1e9)
        while now < until and self._context.time_left_s() > LEAVE_S:
            self._context.heartbeat()
            time.sleep(min(SLICE_S, (until - now) / 1e9))
            now = time.monotonic_ns()
        self._context.heartbeat()
        self._paused_ns.add(now - begin)
