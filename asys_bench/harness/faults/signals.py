"""Faults by signal: kill, stop, slow; and storms, which strike whatever process is there."""

from __future__ import annotations

import signal
import threading
import time
from abc import abstractmethod
from typing import ClassVar

from asys_bench.harness.faults.fault import Fault
from asys_bench.harness.faults.observed import ObservedRun
from asys_bench.system.liveness import ProcessHandle

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


class _OfAnybody(Fault):
    """Strikes whatever processes there are but the host, however soon after the last strike."""

    def calm_s(self) -> float:
        return self.options.calm_s * self.random.uniform(0.02, 1.98)

    def inject(self, run: ObservedRun) -> None:
        self._lives = {name: run.life(name) for name in run.others()}
        self.send(run, run.processes())

    @abstractmethod
    def send(self, run: ObservedRun, pids: list[int]) -> None:
        """Send signals to some of `pids`."""


class Storm(_OfAnybody):
    """Everything at once: watchdog, fork server, resource tracker, workers, monitors."""

    name, summary = "storm", "SIGKILL or SIGSTOP, by chance, of every process but the host"

    def send(self, run: ObservedRun, pids: list[int]) -> None:
        number = self.random.choice((signal.SIGKILL, signal.SIGSTOP))
        for pid in pids:
            run.send_to(pid, number)


class AnySignal(_OfAnybody):
    """What a person, a shell, a service manager or a bug may send."""

    name, summary = "any_signal", "one to three processes, any but the host, get a signal each"
    signals: ClassVar[tuple[signal.Signals, ...]] = (
        signal.SIGKILL,
        signal.SIGSTOP,
        signal.SIGTERM,
        signal.SIGSEGV,
        signal.SIGABRT,
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGQUIT,
    )

    def send(self, run: ObservedRun, pids: list[int]) -> None:
        for pid in self.random.sample(pids, min(self.random.randint(1, 3), len(pids))):
            run.send_to(pid, self.random.choice(self.signals))


class Freeze(_OfAnybody):
    """A machine or container that stands still while the host goes on, and then does not."""

    name, summary = "freeze", "SIGSTOP of every process but the host, and SIGCONT after a while"
    lasts: ClassVar[bool] = True

    def hold_s(self) -> float:
        return self.options.hold_s * self.random.uniform(0.1, 1.9)

    def send(self, run: ObservedRun, pids: list[int]) -> None:
        self._frozen = pids
        for pid in pids:
            run.send_to(pid, signal.SIGSTOP)

    def lift(self, run: ObservedRun) -> None:
        for pid in self._frozen:
            run.send_to(pid, signal.SIGCONT)

    def recovered(self, run: ObservedRun) -> bool:
        """Nobody needs a successor, unless it stood still for longer than its timeout."""
        return True


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
