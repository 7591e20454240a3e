"""What three viewers of the eyepiece cost a run, and whether the index keeps its bound:

    python tests/stress/eye_viewers.py MINUTES FOLDER          prints one JSON line

A host computes as fast as it can, an SAE learns at one hook, a frozen one of 24,576 features is indexed at
another. The host has the first core for itself; its workers, the eyepiece and the viewers share the others,
as pinning does it. Blocks with three viewers and blocks with none take turns (ABBA); the eyepiece is there in
both. `host_step_ratio`: time of a host step with viewers over that without, `host_cpu_ratio` the same of the
CPU time of the host's thread; `trainer_rows_ratio`: rows trained per second with viewers over that without.
All are medians over quads of blocks, with 95 % bootstrap intervals. Run it on a machine that does nothing
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

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parent))
from eye_rig import HERE, Client, Eyepiece, Host, wait
from leaks import memory_mib

from asys_bench.contracts.stats import SlotField, StatsPage
from asys_bench.rundir.attach import attach_run
from asys_bench.rundir.feature_index import FeatureIndex
from asys_bench.rundir.live_run import ReadingError
from asys_bench.system.process_usage import process_usage

FEATURES, VIEWERS = 24_576, 3
BLOCK_S, SETTLE_S, WARM_S = 15.0, 3.0, 30.0
BOUND_MIB = 256
ORDER = (False, True, True, False)
"""Whether viewers look, of the blocks of a quad."""


class Viewers:
    def __init__(self, address: str) -> None:
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-P", str(HERE / "eye_viewer.py"), address, "late", str(20 * n)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for n in range(VIEWERS)
        ]  # fmt: skip

    def tell(self, word: str) -> None:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(f"{word}\n")
            process.stdin.flush()

    def end(self) -> list[dict]:
        found = []
        for process in self.processes:
            try:
                found.append(json.loads(process.communicate(timeout=60)[0]))
            finally:
                process.kill()
        return found

    def cpu_s(self) -> float:
        return sum((process_usage(one.pid) or (0.0, 0))[0] for one in self.processes)


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


def share_cores(host_pid: int, *others: int) -> None:
    """The host's process gets the first core; what it started, and `others`, the rest."""
    first, *rest = sorted(os.sched_getaffinity(0))
    host = psutil.Process(host_pid)
    pin(host, [first])
    for process in [*host.children(recursive=True), *map(psutil.Process, others)]:
        pin(process, rest)


def pin(process: psutil.Process, cores: list[int]) -> None:
    for thread in process.threads():
        os.sched_setaffinity(thread.id, cores)


def block(meter: Meter, viewers: Viewers, looked: bool) -> tuple[float, float, float]:
    """Host steps per second, trained rows per second, and host steps per CPU second of its thread."""
    viewers.tell("go" if looked else "halt")
    time.sleep(SETTLE_S)
    before = meter.read()
    time.sleep(BLOCK_S)
    seconds, cpu_s, steps, rows = (b - a for a, b in zip(before, meter.read(), strict=True))
    return steps / seconds, rows / seconds, steps / cpu_s


def ratios(quads: list[list[tuple[float, float, float]]], which: int) -> dict[str, float]:
    """Of each quad without viewers over with them; the median, and its interval."""
    found = []
    for quad in quads:
        rates = [one[which] for one in quad]
        found.append((rates[0] + rates[3]) / max(1e-9, rates[1] + rates[2]))
    draw = np.random.default_rng(0)
    boot = [np.median(draw.choice(found, len(found))) for _ in range(2000)]
    low, high = np.quantile(boot, [0.025, 0.975])
    return {
        "ratio": round(statistics.median(found), 4),
        "low": round(low, 4),
        "high": round(high, 4),
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
        stack.callback(lambda: [one.kill() for one in viewers.processes])
        share_cores(
            meter.pid("host"), eyepiece.process.pid, *(one.pid for one in viewers.processes)
        )
        began_s, eye_s, viewers_s = (
            time.monotonic(),
            process_usage(eyepiece.process.pid),
            viewers.cpu_s(),
        )
        quads, memory = [], []
        while time.monotonic() - began_s < 60 * minutes or len(quads) < 2:
            quads.append([])
            for looked in ORDER:
                quads[-1].append(block(meter, viewers, looked))
                memory.append(memory_mib(meter.pid("index-0"))[1])
        eye_after = process_usage(eyepiece.process.pid)
        assert eye_s is not None
        assert eye_after is not None
        seconds = time.monotonic() - began_s
        viewers_s = viewers.cpu_s() - viewers_s
        told = viewers.end()
        columns = index_columns(host.run_dir)
        inverse = ratios(quads, 1)
        print(
            json.dumps(
                {
                    "minutes": round(seconds / 60, 2),
                    "quads": len(quads),
                    "host_step_ratio": ratios(quads, 0),
                    "host_cpu_ratio": ratios(quads, 2),
                    "trainer_rows_ratio": {
                        "ratio": round(1 / inverse["ratio"], 4),
                        "low": round(1 / inverse["high"], 4),
                        "high": round(1 / inverse["low"], 4),
                    },
                    "host_steps_per_s": round(statistics.median(q[0][0] for q in quads), 1),
                    "trainer_rows_per_s": round(statistics.median(q[0][1] for q in quads), 1),
                    "requests": sum(one["asked"] for one in told),
                    "refused": sum(one["refused"] for one in told),
                    "events": sum(one["events"] for one in told),
                    "eye_cpu_share": round((eye_after[0] - eye_s[0]) / seconds, 4),
                    "viewers_cpu_share": round(viewers_s / seconds, 4),
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
            ),
            flush=True,
        )
        run.page.close()


if __name__ == "__main__":
    main(float(sys.argv[1]), Path(sys.argv[2]))
