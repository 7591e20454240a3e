"""The SAEs whose features are in memory, read and renewed by a thread of their own.

A question never waits for a large SAE: it is answered from what is there, or told how far the reading is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotInTimeError
from contextlib import suppress
from dataclasses import dataclass, field, replace

from asys_bench.eye.sae_view import SaeView

VIEWS = 2
"""SAEs whose features are in memory."""
FRESH_S = {"index": 2.0, "archive": 30.0}
"""A view is looked at for being old, or made anew, at most this often."""
SHARE = 0.002
"""And no more often than takes this share of a CPU: the host and its trainers come first. A feature's newest
firing is read apart, each time that it is asked for. At first, while much is new, it is made anew sooner:
when it has been looked at for as long again."""
WAIT_S = 1.0
"""A question waits so long for a view that is being read."""

Told = Callable[[str], None]
Read = Callable[[str, SaeView | None, Told], SaeView]


class NotYetError(Exception):
    """The features are being read; says how far that is."""


class _ClosedError(Exception):
    pass


@dataclass(frozen=True)
class _Kept:
    view: SaeView
    first_at_s: float
    """When the SAE was first read."""
    made_at_s: float
    looked_at_s: float
    took_s: float
    """CPU time of its making."""

    @property
    def is_old(self) -> bool:
        features = self.view.features
        kind = features.kind if features is not None else "index"
        now_s = time.monotonic()
        least_s = min(self.took_s / SHARE, self.made_at_s - self.first_at_s)
        return now_s - self.looked_at_s >= FRESH_S[kind] and now_s - self.made_at_s >= least_s


@dataclass
class _Reading:
    future: Future[SaeView] = field(init=False)
    told: str = "waiting for another SAE"


@dataclass
class Views:
    """read: label, the view that is there, and whom to tell how far it is -> the newest view, which may be
    the same. It may raise; a question for a view that is not there gets that."""

    read: Read
    _kept: dict[str, _Kept] = field(default_factory=dict)
    _readings: dict[str, _Reading] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _closed: bool = False

    def __post_init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "eye-reading")

    def close(self) -> None:
        """Leave what is being read. Idempotent."""
        self._closed = True
        self._thread.shutdown(wait=False, cancel_futures=True)

    def get(self, label: str, wait_s: float = WAIT_S) -> SaeView:
        """The view of an SAE, the newest one if it is read within `wait_s`.

        Raises:
            NotYetError: it is read for the first time. What `read` raises.
        """
        with self._lock:
            kept = self._kept.get(label)
            reading = self._begin(label, kept) if kept is None or kept.is_old else None
        if reading is None:
            assert kept is not None
            return kept.view
        with suppress(NotInTimeError):
            return reading.future.result(wait_s)
        if kept is None:
            raise NotYetError(f"reading the features: {reading.told}")
        return kept.view

    def there(self, label: str) -> SaeView | None:
        """As it is, however old; nothing is begun."""
        kept = self._kept.get(label)
        return kept.view if kept is not None else None

    def _begin(self, label: str, kept: _Kept | None) -> _Reading:
        """Under the lock."""
        reading = self._readings.get(label)
        if reading is None:
            reading = self._readings[label] = _Reading()
            before = kept.view if kept is not None else None
            reading.future = self._thread.submit(self._go_on, label, before, reading)
        return reading

    def _go_on(self, label: str, before: SaeView | None, reading: _Reading) -> SaeView:
        def told(text: str) -> None:
            if self._closed:
                raise _ClosedError
            reading.told = text

        try:
            began_s = time.thread_time()
            view = self.read(label, before, told)
            took_s = time.thread_time() - began_s
            now_s = time.monotonic()
            with self._lock:
                kept = self._kept.pop(label, None)
                if kept is None:
                    kept = _Kept(view, now_s, now_s, now_s, took_s)
                elif view is not kept.view:
                    kept = _Kept(view, kept.first_at_s, now_s, now_s, took_s)
                self._kept[label] = replace(kept, looked_at_s=now_s)
                while len(self._kept) > VIEWS:
                    del self._kept[next(iter(self._kept))]
            return view
        finally:
            with self._lock:
                self._readings.pop(label, None)
