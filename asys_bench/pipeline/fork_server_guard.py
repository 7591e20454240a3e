"""Preloaded by a run's fork server, first of all: makes the server end with its watchdog.

Workers hold the pipe by which a fork server notices that nobody needs it, so after the death of its
watchdog it would stay for as long as they do.
"""

from __future__ import annotations

import os
import signal

from asys_bench.pipeline.liveness import signal_on_parent_death


def end_with(parent: str | None) -> None:
    """SIGKILL for this process when its parent ends; at once if `parent` (a pid) is gone by now."""
    if parent is None:
        return
    signal_on_parent_death(signal.SIGKILL)
    if os.getppid() != int(parent):
        os._exit(0)


# Importing is the only thing that a fork server can be told to do.
end_with(os.environ.get("ASYS_FORK_SERVER_PARENT"))
