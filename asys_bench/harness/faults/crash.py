"""The host itself dies."""

from __future__ import annotations

import signal
from typing import ClassVar

from asys_bench.harness.faults.fault import Fault
from asys_bench.harness.faults.observed import ObservedRun


class HostCrash(Fault):
    """Workers drain, write and leave within five seconds; nothing stays behind.

    With `worker: everyone` all others are stopped (SIGSTOP) first, and must leave all the same.
    """

    name, summary = "host_crash", "SIGKILL of the host process"
    replaces: ClassVar[bool] = False
    host_survives: ClassVar[bool] = False

    def inject(self, run: ObservedRun) -> None:
        if self.options.worker == "everyone":
            run.send_all(signal.SIGSTOP)
        run.process.kill()
