"""Preloaded by a run's fork server, first of all: makes the server end with its watchdog, and nice.

Workers hold the pipe by which a fork server notices that nobody needs it, so after the death of its
watchdog it would stay for as long as they do.
"""

from __future__ import annotations

import logging
import os
import signal

from asys_bench.system.liveness import signal_on_parent_death
from asys_bench.system.process import yield_to_others


def end_with(parent: str | None) -> None:
    """SIGKILL for this process when its parent ends; at once if `parent` (a pid) is gone by now."""
    if parent is None:
        return
    signal_on_parent_death(signal.SIGKILL)
    if os.getppid() != int(parent):
        os._exit(0)


def be_nice(niceness: str | None) -> None:
    """Raise this process to `niceness`; the imports that follow are not worth the host's time."""
    for problem in yield_to_others(int(niceness)) if niceness is not None else ():
        logging.getLogger("asys_bench.watchdog").warning("the fork server: %s", problem)


signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to a whole service; it ends with its watchdog
# Importing is the only thing that a fork server can be told to do.
end_with(os.environ.get("ASYS_FORK_SERVER_PARENT"))
be_nice(os.environ.get("ASYS_FORK_SERVER_NICENESS"))
