"""A real `asys-run` in a process of its own, watched through its stats page as anyone could."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asys_bench.contracts.stats import Slot, SlotField, StatsPage, WorkerState
from asys_bench.system.liveness import waited_for_cpu_ns
from asys_bench.system.process import start_time

PATIENCE_S = 240.0


class Run:
    """One `asys-run --config profile_consumer.yaml` with overrides."""

    def __init__(self, folder: Path, *sets: str) -> None:
        self.folder = folder
        self.output = folder / "output.txt"
        overrides = [f"run.dir={folder}", *sets]
        command = [
            sys.executable,
            "-P",
            "-m",
            "asys_bench.cli.run",
            "--config",
            "profile_consumer.yaml",
        ]
        for override in overrides:
            command += ["--set", override]
        with open(self.output, "wb") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._page: StatsPage | None = None
        self._seen: dict[int, int] = {}

    @property
    def path(self) -> Path:
        self.wait_for(lambda: any(self.folder.glob("*/run.json")), "a run directory")
        return next(self.folder.glob("*/run.json")).parent

    @property
    def page(self) -> StatsPage:
        if self._page is None:
            document = json.loads((self.path / "run.json").read_text())
            self._page = StatsPage.attach(os.open(document["stats_page"], os.O_RDWR))
        return self._page

    def slot(self, name: str) -> Slot:
        return self.page.slot(name)

    def pid(self, name: str) -> int:
        pid = self.slot(name).get(SlotField.PID)
        self._seen[pid] = start_time(pid)
        return pid

    def is_replaced(self, name: str, pid: int) -> bool:
        """Whether a successor of `pid` is at work; one that has only begun may not drain in time."""
        return self.pid(name) != pid and self.slot(name).state is WorkerState.READY

    def remember_processes(self) -> dict[int, int]:
        """pid -> start time of every process of the run, for `leftovers`."""
        for name, _ in self.page.slots():
            self.pid(name)
        self._seen.pop(0, None)
        return self._seen

    def leftovers(self) -> list[int]:
        """Processes of the run that are still there (zombies of ours do not count)."""
        return [pid for pid, started in self._seen.items() if started and _running(pid, started)]

    def wait_for(
        self, condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S
    ) -> None:
        deadline = time.monotonic() + patience_s
        while not condition():
            if self.process.poll() is not None and not condition():
                pytest.fail(f"the run ended while waiting for {what}:\n{self.text()}")
            if time.monotonic() > deadline:
                pytest.fail(f"{what} did not happen in {patience_s:g} s:\n{self.text()}")
            time.sleep(0.02)

    def metric(self, slot: str, name: str) -> float:
        metric: Any = self.slot(slot).metrics().get(name)
        return metric.value if metric is not None else 0

    def wait_rows(self, rows: int) -> None:
        """Until trainer and archiver have both got this many rows of the policy network."""
        hook = "{hook=mlp_extractor.policy_net}"
        self.wait_for(
            lambda: (
                min(
                    self.metric("trainer-0", "sae_rows" + hook),
                    self.metric("archive-0", "archive_rows" + hook),
                )
                >= rows
            ),
            f"{rows} rows",
        )

    def finish(self, patience_s: float = PATIENCE_S) -> int:
        return self.process.wait(patience_s)

    def within(self, limit_s: float, condition: Callable[[], bool], what: str) -> None:
        """Wait for `condition`; time for which processes of the run waited for a CPU does not count."""
        began, pids = time.monotonic(), list(self._seen)
        before = {pid: waited_for_cpu_ns(pid) for pid in pids}
        last = dict(before)
        while not condition():
            for pid in pids:
                last[pid] = max(last[pid], waited_for_cpu_ns(pid))
            waited_s = sum(last[pid] - before[pid] for pid in pids) / 1e9
            took_s = time.monotonic() - began
            if took_s > limit_s + waited_s:
                pytest.fail(
                    f"{what} took {took_s:.1f} s, of which {waited_s:.1f} s without a CPU:\n{self.text()}"
                )
            time.sleep(0.02)

    def text(self) -> str:
        return self.output.read_text(errors="replace")[-6000:]

    def summary(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.path / "summary.json").read_text())
        return document

    def end(self) -> None:
        """End every process of the run by its id."""
        try:
            if self.process.poll() is None:
                self.remember_processes()
        finally:
            if self.process.poll() is None:
                self.process.kill()
            self.process.wait()
            for pid in self.leftovers():
                os.kill(pid, signal.SIGKILL)
            if self._page is not None:
                self._page.close()


def _running(pid: int, started: int) -> bool:
    if start_time(pid) != started:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    return state not in "ZX"


@pytest.fixture
def start_run(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def start(*sets: str) -> Run:
        folder = tmp_path / f"run{len(runs)}"
        folder.mkdir()
        runs.append(Run(folder, *sets))
        return runs[-1]

    yield start
    for run in runs:
        run.end()
    assert not [name for name in os.listdir("/dev/shm") if "asys" in name]
