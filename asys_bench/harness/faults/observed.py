"""The run under test, seen from outside: its processes, slots and counts. Nothing is asked of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Self

from asys_bench.contracts.bus import BusAccount
from asys_bench.contracts.run_files import RUN_FILE
from asys_bench.contracts.stats import RunState, Slot, SlotField
from asys_bench.harness.faults.host_process import HostTask
from asys_bench.rundir.live_run import LiveRun, LiveRunError, NothingObservedError
from asys_bench.system.liveness import ProcessHandle, all_pids, has_in_environment
from asys_bench.system.process import start_time

MARK = "ASYS_CHAOS_MARK"
START_PATIENCE_S = 180.0
"""For torch, fork server and workers of a run to come up."""


class ObservedRun:
    """process: the host. mark: what its environment, and so everybody's, holds."""

    def __init__(self, process: subprocess.Popen[bytes], mark: str, runs: Path) -> None:
        self.process, self.mark, self._runs = process, mark, runs
        self.live: LiveRun | None = None
        self.run_dir = runs
        self._at_end: list[Callable[[], None]] = []
        self._seen: dict[int, int] = {}
        self.sent = 0
        """Signals."""

    @classmethod
    def start(
        cls,
        task: HostTask,
        runs: Path,
        environment: Mapping[str, str],
        terminal: Path | None = None,
    ) -> Self:
        """Start the host, which runs until `stop_host`.

        runs: where its run directory will be. environment: beside this process's own. terminal: a file
        for what it prints; None: where this process prints.
        """
        mark = uuid.uuid4().hex
        config = {**task.config, "run": {**task.config["run"], "dir": str(runs)}}
        with open(terminal, "wb") if terminal else nullcontext() as output:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "asys_bench.harness.faults.host_process"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env={**os.environ, **environment, MARK: mark},
            )
        assert process.stdin is not None
        process.stdin.write(json.dumps({**asdict(task), "config": config}).encode() + b"\n")
        process.stdin.flush()
        return cls(process, mark, runs)

    def attach(self, patience_s: float) -> bool:
        """Wait until the host runs observed. False: it ended before (its outcome says why).

        Raises:
            TimeoutError: it did neither.
        """
        deadline = time.monotonic() + patience_s
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the host was not running after {patience_s:g} s")
            if self._try_attach():
                return True
            time.sleep(0.01)
        return False

    def _try_attach(self) -> bool:
        if self.live is None:
            for found in self._runs.glob(f"*/{RUN_FILE}"):
                self.run_dir = found.parent
                try:
                    self.live = LiveRun.attach(found.parent)
                except NothingObservedError:
                    return True
                except LiveRunError:
                    return False
        return self.live is not None and self.live.page.run_state is RunState.RUNNING

    def slot(self, name: str) -> Slot:
        if self.live is None:
            raise RuntimeError("the run has no workers: a fault needs a pipeline with hooks")
        return self.live.page.slot(name)

    def pid(self, name: str) -> int:
        return self.slot(name).get(SlotField.PID)

    def life(self, name: str) -> tuple[int, int]:
        """Tells one process of a slot from the next."""
        slot = self.slot(name)
        return slot.get(SlotField.PID), slot.get(SlotField.LAUNCH)

    def others(self) -> list[str]:
        """Every slot but the host's."""
        if self.live is None:
            return []
        return [name for name, _ in self.live.page.slots() if name != "host"]

    def send(self, names: Sequence[str], number: signal.Signals) -> None:
        """To the processes of these slots; one that is gone is fine."""
        for name in names:
            slot = self.slot(name)
            _send(slot.get(SlotField.PID), number, slot.get(SlotField.PROCESS_START))
            self.sent += 1

    def send_all(self, number: signal.Signals) -> None:
        """To every process of the run but the host."""
        for pid in self.processes():
            self.send_to(pid, number)

    def send_to(self, pid: int, number: signal.Signals) -> None:
        """To this process, one of `processes`; one that is gone, and its pid reused, is fine."""
        _send(pid, number, self._seen[pid])
        self.sent += 1

    def send_one(self, choose: Callable[[Sequence[int]], int], number: signal.Signals) -> None:
        """To one of those: a worker, the watchdog, its fork server, a resource tracker."""
        if found := self.processes():
            self.send_to(choose(sorted(found)), number)

    def processes(self) -> list[int]:
        """Every process of the run but the host, by the mark in its environment."""
        others = (pid for pid in all_pids() if pid not in (self.process.pid, os.getpid()))
        found = [pid for pid in others if has_in_environment(pid, f"{MARK}={self.mark}")]
        self._seen.update((pid, start_time(pid)) for pid in found)
        return found

    @property
    def seen(self) -> int:
        """How many processes of it there have been, as far as anybody looked."""
        return len(self._seen)

    def account(self) -> BusAccount | None:
        return self.live.client.account() if self.live is not None else None

    def delivered(self, group: str) -> int:
        account = self.account()
        return 0 if account is None else account.group(group).delivered

    def at_end(self, action: Callable[[], None]) -> None:
        """Do this once every process of the run is gone."""
        self._at_end.append(action)

    def stop_host(self) -> None:
        """Ask the host to finish, as Ctrl-C would."""
        if self.process.stdin is not None:
            self.process.stdin.close()

    def wait_gone(self, patience_s: float) -> list[int]:
        """Wait until nothing of the run is left; what is, after that, is returned, and killed."""
        deadline = time.monotonic() + patience_s
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.01)
        for pid in left:
            _send(pid, signal.SIGKILL, wait_s=2.0)
        return left

    def close(self) -> None:
        """End what is left and detach."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.wait_gone(0.0)
        for action in self._at_end:
            try:
                action()
            except OSError:
                continue
        if self.live is not None:
            self.live.close()
            self.live = None


def _send(
    pid: int, number: signal.Signals, started: int | None = None, *, wait_s: float = 0.0
) -> None:
    """To this process, if it is still there; then wait up to `wait_s` for its end."""
    try:
        handle = ProcessHandle(pid, started)
    except OSError:
        return
    handle.kill(number)
    handle.wait(wait_s)
    handle.close()
