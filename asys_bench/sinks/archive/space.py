"""A full disk pauses the archiver; it does not end it.

The packets that wait stay in the lease and behind it in the ring, whose own accounting counts what
the host then has to drop. When space returns, writing goes on where it stopped.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from asys_bench.contracts.sink import SinkContext

log = logging.getLogger(__name__)
T = TypeVar("T")
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
SLICE_S = 0.2
"""Longest sleep between two heartbeats."""
LEAVE_S = 0.5
"""Stop waiting this long before the drain deadline, so that the lease can still be given back."""


class Patience:
    """Repeats writes that fail for want of space, beating the heart meanwhile."""

    def __init__(self, context: SinkContext, retry_s: float) -> None:
        self._context, self._retry_s = context, retry_s
        self._errors = context.slot.counter("archive_write_errors")
        self._paused_ns = context.slot.counter("archive_paused_ns")

    def attempt(self, what: str, action: Callable[[], T]) -> T:
        """`action()`, repeated while the disk is full. It must leave nothing behind when it fails.

        Raises:
            OSError: another error, or the disk is still full at the drain deadline.
        """
        waiting = False
        while True:
            try:
                result = action()
            except OSError as error:
                self._errors.add()
                why = str(error)  # not the exception: its frames hold the lease
                if error.errno not in FULL:
                    raise
                if self._context.time_left_s() <= LEAVE_S:
                    log.error("cannot %s: disk full (%s), and the run ends", what, why)
                    raise
                if not waiting:
                    waiting = True
                    log.warning(
                        "cannot %s: disk full (%s); paused, retried every %g s until there is space",
                        what,
                        why,
                        self._retry_s,
                    )
            else:
                if waiting:
                    log.warning("space returned; the archive goes on")
                return result
            self._pause()

    def _pause(self) -> None:
        begin = now = time.monotonic_ns()
        until = begin + int(self._retry_s * 1e9)
        while now < until and self._context.time_left_s() > LEAVE_S:
            self._context.heartbeat()
            time.sleep(min(SLICE_S, (until - now) / 1e9))
            now = time.monotonic_ns()
        self._context.heartbeat()
        self._paused_ns.add(now - begin)
