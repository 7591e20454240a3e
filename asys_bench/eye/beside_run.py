"""The eyepiece of a run that goes on, as that run starts it (`run.eye`).

    python -m asys_bench.eye.beside_run RUN_DIR HOST_PID HOST_START

Standard output gets one line, the address, at once: the server is imported afterwards. HOST_START is
`system.process.start_time` of the host.

- The process that is started leaves, and a child of its goes on: a host that waits for all of its children
  must not wait for viewers.
- It ends with the run, which it sees by itself: the host keeps nothing of it. Where nobody looks it leaves at
  once, else `LINGER_S` after the last page was closed and `LONGEST_S` after the run's end at the latest.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from asys_bench.contracts.run_files import RunFileError, read_run_file
from asys_bench.eye.address import listen
from asys_bench.system.liveness import ProcessHandle
from asys_bench.system.process import is_same_start

if TYPE_CHECKING:  # torch takes seconds, in which the address is known already
    from asys_bench.eye.serve import Viewers

LINGER_S = 20.0
"""A page that is loaded again, or another view, is back within it."""
LONGEST_S = 3600.0
"""A forgotten tab keeps the process no longer."""


class RunEnd:
    """When the run of `host` has ended, and when its eyepiece may leave."""

    def __init__(self, run_dir: Path, host: ProcessHandle) -> None:
        self._run_dir, self._host = run_dir, host
        self._ended_at: float | None = None

    def is_over(self, viewers: Viewers) -> bool:
        """The run has ended, and nobody looks any more."""
        now = time.monotonic()
        if self._ended_at is None:
            if not self._has_ended():
                return False
            self._ended_at = now
        if now - self._ended_at > LONGEST_S:
            return True
        return not viewers.open and now - viewers.left_at > LINGER_S

    def _has_ended(self) -> bool:
        """The host is gone, has written how its attempt ended, or another host goes on with the run."""
        if not self._host.alive():
            return True
        try:
            document = read_run_file(self._run_dir)
            pid, started = document["host_pid"], int(document["host_start"])
            if pid != self._host.pid or not is_same_start(started, self._host.started):
                return True
            return document["attempts"][-1]["end"] is not None
        except (RunFileError, LookupError, TypeError, ValueError):
            return False  # it is damaged, or away for a moment: the host's end will tell


def main(arguments: Sequence[str]) -> None:
    """Serve the run; see the module docstring."""
    run_dir, pid, started = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    host = ProcessHandle(pid, started)
    if os.fork():
        os._exit(0)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    with listen(0) as address:
        print(address.url, flush=True)
        os.dup2(2, 1)  # the pipe ends: whatever is printed from here on goes to the log
        from asys_bench.eye.serve import serve

        serve(run_dir, address, RunEnd(run_dir, host).is_over)


if __name__ == "__main__":
    main(sys.argv[1:])
