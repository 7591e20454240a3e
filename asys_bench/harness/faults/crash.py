"""The host itself dies."""

from __future__ import annotations

from typing import ClassVar

from asys_bench.harness.faults.fault import Fault
from asys_bench.harness.faults.observed import ObservedRun


class HostCrash(Fault):
    """Workers drain, write and leave within five seconds; nothing stays behind."""

    name, summary = "host_crash", "SIGKILL of the host process"
    replaces: ClassVar[bool] = False
    host_survives: ClassVar[bool] = False

    def inject(self, run: ObservedRun) -> None:
        run.process.kill()
