"""What a command changes in its process: signal handlers and where our log lines go.

The host runs in the same process and starts processes of its own, by fork too. A forked child has the
handlers that it would have had without us, and our log lines never touch the root logger, which the
host configures for itself.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], None]


class SignalHandlers:
    """`handler` for `numbers` until `restore`, in this process alone.

    A signal that was ignored stays ignored: whoever started us wanted that.
    """

    def __init__(self, numbers: tuple[signal.Signals, ...], handler: Handler) -> None:
        self._handler, self._pid = handler, os.getpid()
        self._before: dict[int, Any] = {}
        for number in numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        _watch_forks()
        _installed.add(self)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The signals that have our handler."""
        return tuple(self._before)

    def restore(self) -> None:
        """Put back what was there before, unless somebody has replaced ours since. Idempotent."""
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # it came before the child could put its handlers back
            _restore_all()
            os.kill(os.getpid(), number)
            return
        self._handler(number, frame)


_installed: weakref.WeakSet[SignalHandlers] = weakref.WeakSet()
_forks_are_watched = False


def _watch_forks() -> None:
    global _forks_are_watched
    if not _forks_are_watched:
        _forks_are_watched = True
        os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_released_child)


_fork = threading.local()
"""`mask`: of the thread that forks, before the fork; None where nothing was blocked."""


def _hold() -> None:
    """Block our signals: Python forgets one that comes between a fork and the child's first step, and
    without our handlers it would have ended the child."""
    ours = {n for handlers in list(_installed) for n in handlers.numbers}
    _fork.mask = signal.pthread_sigmask(signal.SIG_BLOCK, ours) if ours else None


def _release() -> None:
    if getattr(_fork, "mask", None) is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _fork.mask)


def _released_child() -> None:
    _restore_all()
    _release()


def _restore_all() -> None:
    for handlers in list(_installed):
        handlers.restore()


@contextmanager
def log_lines(form: str) -> Iterator[None]:
    """Our warnings on standard error in the form `form`, beside whatever logging the host sets up."""
    logger = logging.getLogger("asys_bench")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(form))
    handler.setLevel(logging.WARNING)
    propagated = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated
