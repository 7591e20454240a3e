"""The sessions that a run's watchdogs lead: whatever is left in one is the run's, and is ended.

Workers are known by their slots. A fork server or resource tracker that was stopped (SIGSTOP) when its
watchdog died is not, and would stay for ever. So would the folder of a watchdog that was killed while it
started a fork server: its name tells whose it is.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import tempfile
import time
from contextlib import suppress

from asys_bench.system.liveness import ProcessHandle, all_pids, has_in_environment
from asys_bench.system.process import stat_fields

VARIABLE = "ASYS_RUN_MARK"
GRACE_S = 0.5
"""For processes that are about to leave by themselves."""


class ProcessGroups:
    """Sessions by their leader's pid; members are recognised by the run's mark in their environment."""

    def __init__(self, run_id: str) -> None:
        self.environment = {VARIABLE: f"{run_id}:{os.getpid()}:{id(self):x}"}
        self._leaders: set[int] = set()

    def remove_folders(self, run_dir: str) -> None:
        """Those that a watchdog of this run left; once no process of it is there."""
        remove_folders(self.environment[VARIABLE], run_dir)

    def add(self, leader: int) -> None:
        """A watchdog was started as the leader of a session of its own."""
        self._leaders.add(leader)

    def members(self) -> list[int]:
        """Process ids of what runs in these sessions (zombies do not)."""
        if not self._leaders:
            return []
        return [pid for pid in all_pids() if _session(pid) in self._leaders and self._marked(pid)]

    def end(self, deadline: float) -> list[int]:
        """SIGKILL what does not leave by itself within `GRACE_S`; returns what is there at `deadline`
        (monotonic) all the same, because this process may not kill it."""
        grace = min(deadline, time.monotonic() + GRACE_S)
        while (left := self.members()) and time.monotonic() < grace:
            time.sleep(0.01)
        for pid in left:
            try:
                handle = ProcessHandle(pid)
            except OSError:
                continue
            with suppress(OSError):  # another user's, since this process has changed its own
                if self._marked(pid):  # still the same one, now that it cannot be confused any more
                    handle.kill(signal.SIGKILL)
                    handle.wait(max(0.0, min(2.0, deadline - time.monotonic())))
            handle.close()
        return self.members() if left else []

    def _marked(self, pid: int) -> bool:
        return has_in_environment(pid, f"{VARIABLE}={self.environment[VARIABLE]}")


def folder_prefix(mark: str) -> str:
    """How the names of temporary folders of the run with this mark begin."""
    return f"asys-{hashlib.sha256(mark.encode()).hexdigest()[:12]}-"


def remove_folders(mark: str, run_dir: str | None) -> None:
    """Remove the temporary folders of the run with this mark, in TMPDIR or in `run_dir`."""
    places = [] if run_dir is None else [run_dir]
    with suppress(OSError):  # no folder for temporary files is left
        places.append(tempfile.gettempdir())
    prefixes = (folder_prefix(mark), f".{folder_prefix(mark)}")
    for place in places:
        with suppress(OSError):  # another user's by now, or under another root
            for name in os.listdir(place):
                if name.startswith(prefixes):
                    shutil.rmtree(os.path.join(place, name), ignore_errors=True)


def _session(pid: int) -> int:
    """The session of a live process; 0 for zombies and for none."""
    fields = stat_fields(pid)
    return int(fields[3]) if fields and fields[0] not in (b"Z", b"X") else 0
