"""What three viewers of the eyepiece cost a run, and whether the index keeps its bound:

    python tests/stress/eye_viewers.py MINUTES FOLDER          prints one JSON line

A host computes as fast as it can, an SAE learns at one hook, a frozen one of 24,576 features is indexed at
another. The host has the first core for itself; its workers, the eyepiece and the viewers share the others,
as pinning does it. Blocks with three viewers and blocks with none take turns (ABBA); the eyepiece is there in
both.

    host_step_ratio       time of a host step with viewers over that without
    host_cpu_ratio        the same of the CPU time of the host's thread
    trainer_rows_ratio    rows trained per second with viewers over that without: `rows_per_cpu_ratio`,
                          that of rows per CPU second of the trainer, times the ratio of its CPU
    trainer_rows_ratio_beside_viewers
                          of rows per second of what the viewers' own process left of the shared cores:
                          viewers stand for browsers on other machines
    cpu                   percent of a core of each process without viewers, with them, and the difference

Ratios are medians over quads of blocks, with 95 % bootstrap intervals. Run it on a machine that does nothing
else.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent))
from eye_accounts import (
    EYEPIECE,
    VIEWERS,
    Accounts,
    Block,
    Quad,
    cpu_table,
    ratio,
    rows_beside_viewers,
)
from eye_rig import HERE, Client, Eyepiece, Host, wait
from leaks import memory_mib

from asys_bench.contracts.stats import SlotField, StatsPage
from asys_bench.rundir.attach import attach_run
from asys_bench.rundir.feature_index import FeatureIndex
from asys_bench.rundir.live_run import ReadingError

FEATURES, COUNT = 24_576, 3
BLOCK_S, SETTLE_S, WARM_S = 15.0, 3.0, 30.0
BOUND_MIB = 256
ORDER = (False, True, True, False)
"""Whether viewers look, of the blocks of a quad."""


class Viewers:
    """`eye_viewer.py`."""

    def __init__(self, address: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(HERE / "eye_viewer.py"), address, "late", str(COUNT)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def tell(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def end(self) -> dict:
        try:
            return json.loads(self.process.communicate(timeout=60)[0])
        finally:
            self.process.kill()


class Meter:
    """Counters of a live run."""

    def __init__(self, page: StatsPage) -> None:
        self._page = page

    def value(self, slot: str, name: str) -> float:
        return float(self._page.slot(slot).metrics()[name].value)

    def read(self) -> tuple[float, float, float, float]:
        """Seconds by the clock, the host's thread's CPU seconds, its steps, and rows trained."""
        rows = self.value("trainer-0", "sae_rows_trained{hook=mid}")
        steps = self.value("host", "host_steps")
        return time.monotonic(), thread_s(self.pid("host")), steps, rows

    def pid(self, slot: str) -> int:
        return self._page.slot(slot).get(SlotField.PID)


def thread_s(pid: int) -> float:
    """CPU seconds of a process's first thread (proc(5): schedstat has nanoseconds)."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9


def share_cores(host_pid: int, *others: int) -> list[int]:
    """The host's process gets the first core; what it started, and `others`, the rest, which is returned."""
    first, *rest = sorted(os.sched_getaffinity(0))
    host = psutil.Process(host_pid)
    pin(host, [first])
    for process in [*host.children(recursive=True), *map(psutil.Process, others)]:
        pin(process, rest)
    return rest


def pin(process: psutil.Process, cores: list[int]) -> None:
    for thread in process.threads():
        os.sched_setaffinity(thread.id, cores)


def block(meter: Meter, accounts: Accounts, viewers: Viewers, looked: bool) -> Block:
    viewers.tell("go" if looked else "halt")
    time.sleep(SETTLE_S)
    before, cpu_before = meter.read(), accounts.read()
    time.sleep(BLOCK_S)
    seconds, cpu_s, steps, rows = (b - a for a, b in zip(before, meter.read(), strict=True))
    cpu = {name: (used - cpu_before[name]) / seconds for name, used in accounts.read().items()}
    return Block(steps / seconds, rows / seconds, steps / cpu_s, cpu)


def figures(quads: list[Quad], cores: int) -> dict[str, object]:
    """What the blocks come to."""
    return {
        "quads": len(quads),
        "host_step_ratio": ratio(quads, lambda one: 1 / one.steps),
        "host_cpu_ratio": ratio(quads, lambda one: 1 / one.steps_per_cpu_s),
        "trainer_rows_ratio": ratio(quads, lambda one: one.rows),
        "trainer_rows_ratio_beside_viewers": ratio(
            quads, lambda one: rows_beside_viewers(one, cores)
        ),
        "rows_per_cpu_ratio": ratio(quads, lambda one: one.rows_per_cpu_s),
        "host_steps_per_s": round(statistics.median(q[0].steps for q in quads), 1),
        "trainer_rows_per_s": round(statistics.median(q[0].rows for q in quads), 1),
        "cpu": cpu_table(quads),
    }


def index_columns(run_dir: Path) -> dict[str, float]:
    found = {}
    for hook in ("mid", "late"):
        try:
            found[hook] = round(FeatureIndex.open(run_dir, hook).sizes.nbytes / (1 << 20), 1)
        except ReadingError:
            continue
    return found


def main(minutes: float, folder: Path) -> None:
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        host = Host(folder, FEATURES, 0.0)
        stack.callback(host.end)
        run = stack.enter_context(attach_run(host.run_dir))
        meter = Meter(run.page)
        wait(lambda: meter.pid("index-0"))
        base_mib = memory_mib(meter.pid("index-0"))[1]
        eyepiece = stack.enter_context(Eyepiece(host.run_dir))
        client = Client(eyepiece.address)
        wait(lambda: index_columns(host.run_dir).keys() == {"mid", "late"}, 0.5)
        client.ask("/api/table", sae="late")
        time.sleep(WARM_S)
        viewers = Viewers(eyepiece.address)
        stack.callback(viewers.process.kill)
        others = {EYEPIECE: eyepiece.process.pid, VIEWERS: viewers.process.pid}
        accounts = Accounts(run.page, others, share_cores(meter.pid("host"), *others.values()))
        began_s = time.monotonic()
        quads: list[list[Block]] = []
        memory = []
        while time.monotonic() - began_s < 60 * minutes or len(quads) < 2:
            quads.append([])
            for looked in ORDER:
                quads[-1].append(block(meter, accounts, viewers, looked))
                memory.append(memory_mib(meter.pid("index-0"))[1])
        seconds = time.monotonic() - began_s
        told = viewers.end()
        columns = index_columns(host.run_dir)
        found = {
            "minutes": round(seconds / 60, 2),
            **figures(quads, len(accounts.cores)),
            "requests": told["asked"],
            "refused": told["refused"],
            "events": told["events"],
            "index_columns_mib": columns,
            "index_process_mib": {
                "before": round(base_mib, 1),
                "first": round(memory[0], 1),
                "last": round(memory[-1], 1),
                "most": round(max(memory), 1),
                "bound": round(base_mib + BOUND_MIB * len(columns), 1),
            },
            "load": [round(one, 1) for one in os.getloadavg()],
        }
        print(json.dumps(found), flush=True)
        run.page.close()


if __name__ == "__main__":
    main(float(sys.argv[1]), Path(sys.argv[2]))
