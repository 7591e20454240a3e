"""The flight recorder: keeps what was captured around an alarm, and asks for more of it.

The shards of the run's archive with packets from `before_s` before the alarm to `after_s` after it are pinned
(`sinks.archive.pins`), in a thread of its own, once a second while the window lasts and until the archiver
has written what was captured in it. Until then hooks sample at their highest rate
(`capture.raised_sampling`): the deadline stands in the stats page.

Shards that were deleted before the alarm came (`max_gib`, `max_age_s`) cannot be had back: an archive must
hold `before_s` for the window to be whole.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from dataclasses import dataclass

from asys_bench.contracts.bus import BusAccount, BusError
from asys_bench.contracts.run_files import ARCHIVE_DIR
from asys_bench.contracts.sink import SinkContext
from asys_bench.contracts.stats import Counter
from asys_bench.sinks.archive.pins import pin, stored_shards

log = logging.getLogger(__name__)
PIN_EVERY_S = 1.0
CATCH_UP_S = 120.0
"""The longest wait for an archiver that is behind."""
LAST_LEASE_S = 5.0


@dataclass
class _Window:
    """Wall times, in nanoseconds since the epoch."""

    from_ns: int
    until_ns: int


class FlightRecorder:
    """See the module.

    until: the deadline in the stats page. pinned: counts shards.
    """

    def __init__(
        self, context: SinkContext, before_s: float, after_s: float, until: Counter, pinned: Counter
    ) -> None:
        self._run_dir, self._bus_account = context.run_dir, context.account
        self._shift_ns, self._wall_ns = context.clock_shift_ns, context.wall_offset_ns
        self._before_ns, self._after_ns = int(1e9 * before_s), int(1e9 * after_s)
        self._until, self._pinned = until, pinned
        self._until.set(0)  # what an earlier incarnation asked for ends with it
        self._lock = threading.Lock()
        self._window: _Window | None = None
        self._wake = threading.Event()
        self._closing = False
        self._captured: int | None = None
        """Packets of the run when the window ended."""
        self._taken_s = math.inf
        self._said: str | None = None
        self._thread: threading.Thread | None = None

    def record(self) -> None:
        """An alarm came now. Never waits."""
        now_ns = time.monotonic_ns() + self._shift_ns
        wall_ns = now_ns + self._wall_ns
        with self._lock:
            window = self._window
            if window is None:
                window = self._window = _Window(wall_ns - self._before_ns, 0)
            window.from_ns = min(window.from_ns, wall_ns - self._before_ns)
            window.until_ns = wall_ns + self._after_ns
        if self._after_ns:
            self._until.set(now_ns + self._after_ns)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="alarm-recorder", daemon=True)
            self._thread.start()
        self._wake.set()

    def close(self, within_s: float) -> None:
        """Pin for the last time."""
        self._until.set(0)
        thread = self._thread
        if thread is not None:
            self._closing = True
            self._wake.set()
            thread.join(within_s)

    def _work(self) -> None:
        while not self._closing:
            self._wake.wait()
            self._wake.clear()
            while self._window is not None and not self._closing:
                self._pin()
                if self._is_over():
                    self._pin()
                    with self._lock:
                        if self._wall_now_ns() > self._window.until_ns:
                            self._window = None
                elif self._wake.wait(PIN_EVERY_S):
                    self._wake.clear()
        if self._window is not None:
            self._pin()

    def _wall_now_ns(self) -> int:
        return time.monotonic_ns() + self._shift_ns + self._wall_ns

    def _is_over(self) -> bool:
        """What was captured in the window is in shards."""
        assert self._window is not None
        past_s = (self._wall_now_ns() - self._window.until_ns) / 1e9
        if past_s < 0:
            self._captured = None
            return False
        account = self._account()
        if account is None:
            return past_s > CATCH_UP_S
        if self._captured is None:
            self._captured, self._taken_s = account.produced, math.inf
        if (
            account.produced - max((group.ready for group in account.groups), default=0)
            < self._captured
        ):
            return past_s > CATCH_UP_S
        # What was taken last may be on its way into a shard for as long as a lease takes.
        self._taken_s = min(self._taken_s, past_s)
        return past_s - self._taken_s >= LAST_LEASE_S

    def _account(self) -> BusAccount | None:
        """The bus's counters; None where it is gone."""
        try:
            return self._bus_account() if self._bus_account is not None else None
        except (BusError, OSError):
            return None

    def _pin(self) -> None:
        """Pin what is not pinned yet; what fails is tried again a second later."""
        assert self._window is not None
        if not (self._run_dir / ARCHIVE_DIR).is_dir():
            self._say("the run has no archive: the flight recorder pins nothing")
            return
        try:
            wanted = [
                one.name
                for one in stored_shards(self._run_dir)
                if not one.pinned and self._is_wanted(one.sidecar.last_ns if one.sidecar else None)
            ]
            if wanted:
                self._pinned.add(len(pin(self._run_dir, wanted)))
        except OSError as error:
            self._say(f"shards are not pinned yet: {error}")

    def _is_wanted(self, last_ns: int | None) -> bool:
        """last_ns: of the shard's newest packet; None: it is being written, or nobody knows."""
        assert self._window is not None
        return last_ns is None or last_ns >= self._window.from_ns

    def _say(self, what: str) -> None:
        if what != self._said:
            log.warning("%s", what)
        self._said = what
