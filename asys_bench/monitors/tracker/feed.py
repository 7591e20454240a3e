"""A thread that sends points to one tracker, so that nobody else waits for its network.

What the tracker refuses is kept and tried again with growing pauses; past MOST_WAITING points the oldest are
given up and counted. Nothing that a tracker raises leaves this thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from asys_bench.monitors.tracker.tracker import About, Point, TrackedRun, Tracker
from asys_bench.store.objects import Backoff

log = logging.getLogger(__name__)
MOST_WAITING = 20_000
"""A day of points at one in five seconds."""
LOOK_S = 0.2
REOPEN_AFTER = 2
"""Refusals in a row after which the tracker is opened anew: its own process may be gone."""


class Feed:
    """See the module. `points`, `dropped`, `errors`: how often, so far."""

    def __init__(
        self, tracker: Tracker, about: About, opened: Callable[[TrackedRun], None]
    ) -> None:
        self.service = tracker.service
        self.points = self.dropped = self.errors = 0
        self._tracker, self._about, self._opened = tracker, about, opened
        self._waiting: deque[Point] = deque()
        self._lock = threading.Lock()
        self._ending, self._done = threading.Event(), threading.Event()
        self._said = ""
        self._refusals = 0
        self._thread = threading.Thread(
            target=self._run, name=f"tracker-{tracker.service}", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Points that are not sent yet."""
        return len(self._waiting)

    @property
    def done(self) -> bool:
        """Everything is sent and the tracker's run finished, or it was given up."""
        return self._done.is_set()

    @property
    def is_refused(self) -> bool:
        """The last call failed, and is tried again."""
        return bool(self._said)

    def put(self, point: Point) -> None:
        """Never waits."""
        if self._done.is_set():
            return
        with self._lock:
            self._waiting.append(point)
            if len(self._waiting) > MOST_WAITING:
                self._waiting.popleft()
                self.dropped += 1

    def finish(self) -> None:
        """There will be no more points. Never waits; `done` says when it is over."""
        self._ending.set()

    def _run(self) -> None:
        try:
            if self._tried(self._open):
                while not (self._ending.is_set() and not self._waiting):
                    self._ending.wait(LOOK_S)
                    if self._waiting and not self._tried(self._send):
                        return
                self._tried(self._tracker.finish, tries=1)
        finally:
            self._done.set()

    def _open(self) -> None:
        tracked = self._tracker.open(self._about)
        self._about = replace(self._about, known=tracked)
        self._opened(tracked)

    def _send(self) -> None:
        if self._refusals >= REOPEN_AFTER:
            self._open()
            self._refusals = 0
        self._refusals += 1
        points: Sequence[Point] = list(self._waiting)
        self._tracker.log(points)
        self._refusals = 0
        self.points += len(points)
        with self._lock:
            for point in points:
                # `put` may have given up the first of them meanwhile; they are sent all the same.
                if self._waiting and self._waiting[0] is point:
                    self._waiting.popleft()

    def _tried(self, action: Callable[[], None], tries: float = float("inf")) -> bool:
        """Whether it was done, at last; False: the package is missing, or it failed so often."""
        backoff = Backoff()
        while True:
            try:
                action()
            except ImportError as error:
                log.error(
                    "%s gets nothing: %s; pip install 'asys-i[trackers]'", self.service, error
                )
                return False
            except Exception as error:  # noqa: BLE001 - each package has errors of its own; the run goes on
                self.errors += 1
                self._say(f"{type(error).__name__}: {error}")
                tries -= 1
                if tries < 1:
                    return False
                self._pause(backoff.next_s())
            else:
                if self._said:
                    log.warning("%s takes points again", self.service)
                self._said = ""
                return True

    def _say(self, message: str) -> None:
        """Once, until it is another one."""
        if message != self._said:
            log.warning(
                "%s: %s; points are kept, and sending is tried again", self.service, message
            )
        self._said = message

    def _pause(self, seconds: float) -> None:
        """Shorter when the run ends meanwhile."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self._ending.wait(min(LOOK_S, max(0.0, until - time.monotonic()))):
                time.sleep(LOOK_S)
                return
