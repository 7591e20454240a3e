"""Forked children of the host's code that come back out of it: they end as they would have without us."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def children_leave() -> Iterator[None]:
    """Around code of the host's.

    A child that the code forks (`os.fork`) leaves it as the parent does: by its end, by `sys.exit` or
    by an exception. Further out lie the end of the run and its exit codes, which are the parent's: the
    child would stop the parent's workers and report its own end as the run's.
    """
    pid = os.getpid()
    error: BaseException | None = None
    try:
        yield
    except BaseException as raised:
        if os.getpid() == pid:
            raise
        error = raised
    if os.getpid() != pid:
        _end_as_the_interpreter_does(error)


def _end_as_the_interpreter_does(error: BaseException | None) -> None:
    code = 0
    if isinstance(error, SystemExit):
        if isinstance(error.code, int):
            code = error.code & 0xFF
        elif error.code is not None:
            print(error.code, file=sys.stderr)
            code = 1
    elif error is not None:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined] # waits for the child's own threads
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    if isinstance(error, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code)
