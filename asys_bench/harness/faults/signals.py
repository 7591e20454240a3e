"""Faults by signal: kill, stop, storm, slow."""

from __future__ import annotations

import signal
import threading
import time
from typing import ClassVar

from asys_bench.harness.faults.fault import Fault
from asys_bench.harness.faults.observed import ObservedRun
from asys_bench.pipeline.liveness import ProcessHandle

SLICE_S = 0.05
"""One on-off cycle of a slowed worker."""


class NoFault(Fault):
    name, summary, replaces = "none", "nothing happens: the reference", False


class Kill(Fault):
    name, summary = "kill", "SIGKILL"

    def inject(self, run: ObservedRun) -> None:
        self.strike(run, signal.SIGKILL)


class Stop(Fault):
    """The watchdog sees no heartbeat, kills and replaces; nobody sends SIGCONT."""

    name, summary = "stop", "SIGSTOP: alive, silent, holding its claims"

    def inject(self, run: ObservedRun) -> None:
        self.strike(run, signal.SIGSTOP)


class Storm(Fault):
    """Everything at once: watchdog, fork server, resource tracker, workers, monitors."""

    name, summary = "storm", "SIGKILL or SIGSTOP, by chance, of every process but the host"

    def inject(self, run: ObservedRun) -> None:
        self._lives = {name: run.life(name) for name in run.others()}
        number = self.random.choice((signal.SIGKILL, signal.SIGSTOP))
        run.send_all(number)


class Slow(Fault):
    """What a swapping or throttled machine does to a worker: it must not be taken for a hang."""

    name, summary = "slow", "SIGSTOP and SIGCONT in turn: a worker that gets little time"
    lasts: ClassVar[bool] = True
    replaces: ClassVar[bool] = False

    def inject(self, run: ObservedRun) -> None:
        self._end = threading.Event()
        handles = [ProcessHandle(run.pid(name)) for name in self.victims(run)]
        self._thread = threading.Thread(target=self._alternate, args=(handles,), daemon=True)
        self._thread.start()

    def _alternate(self, handles: list[ProcessHandle]) -> None:
        still_s = SLICE_S * self.options.slow_ratio
        while not self._end.is_set():
            for handle in handles:
                handle.kill(signal.SIGSTOP)
            self._end.wait(still_s)
            for handle in handles:
                handle.kill(signal.SIGCONT)
            time.sleep(SLICE_S - still_s)
        for handle in handles:
            handle.close()

    def lift(self, run: ObservedRun) -> None:
        self._end.set()
        self._thread.join()
