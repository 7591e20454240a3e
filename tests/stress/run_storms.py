"""Storms on whole runs: signals to random processes of a run, all but the host, again and again.

    python run_storms.py STORMS SEED [SECONDS [SIDE_BY_SIDE]]     prints a line of JSON per storm

Every way of striking on every bus in turn, each from a seed of its own; the chaos scenario
(`asys_bench.harness.scenarios.chaos`) strikes and counts. The directory of a run that broke a promise
is kept, and its place printed.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asys_bench.harness.measuring.launch import ForkedProcess, Launcher
from asys_bench.harness.results.result_run import RoundStatus
from asys_bench.harness.round import RoundSpec

PIPELINE = Path(__file__).parents[2] / "suites/pipelines/chaos.yaml"
FAULTS: dict[str, dict[str, str]] = {
    "kill": {"worker": "anyone"},
    "any_signal": {},
    "storm": {},
    "freeze": {},
}
"""Name -> what else the case says."""
BUSES = ("cpp_spmc", "numba_ring", "mp_queue")
KINDS = tuple(itertools.product(FAULTS, BUSES))
CALM_S, FREEZE_S = 1.2, 2.0
"""Mean time between strikes, and for which a frozen run stands still."""
DRAIN_S = 30.0
SETS = (
    "host.options.synthetic.layers=2",
    "hooks=[{match: 'layers.*', capture: [activation, gradient], preprocess: [identity]}]",
    "sinks.trainer.hooks=[layers.0]",
    f"run.drain_timeout_s={DRAIN_S}",
    "watchdog.startup_timeout_s=120",
    "resources.worker_nice=0",  # restarts come soon on a busy machine too
)
NEVER = (
    "failed_hosts",
    "changed_weights",
    "changed_rows",
    "unaccounted_packets",
    "archive_missing_packets",
    "torn_frames",
    "damaged_files",
    "tracebacks",
    "late_closes",
    "left_behind",
    "quarantined_workers",
)
"""What must not happen, whatever is struck."""


@dataclass(frozen=True)
class Storm:
    """One storm. `seconds`: about how long it strikes."""

    fault: str
    bus: str
    seed: int
    seconds: float

    def spec(self, keep: Path) -> RoundSpec:
        hold_s = FREEZE_S if self.fault == "freeze" else 0.0
        strikes = max(1, round(self.seconds / (CALM_S + hold_s)))
        return RoundSpec(
            folder="",
            scenario="chaos",
            backend=None,
            pipeline=str(PIPELINE),
            sets=[f"bus.backend={self.bus}", *SETS],
            params={
                "fault": self.fault, **FAULTS[self.fault], "faults": strikes, "calm_s": CALM_S,
                "hold_s": hold_s, "await_recovery": False, "settle_s": 0.0, "keep": str(keep),
            },
            samples=1,
            seed=self.seed,
            warmup_max_s=0,
        )  # fmt: skip


@dataclass(frozen=True)
class StormEnd:
    """What became of it. `broken`: the promises that were, by what was counted; empty is good."""

    storm: Storm
    broken: dict[str, Any]
    figures: dict[str, Any]
    log: str = ""
    kept: str = ""


def strike(storm: Storm, launcher: Launcher, keep: Path) -> StormEnd:
    """Run it, and count."""
    spec = storm.spec(keep)
    end = launcher.run(spec, timeout_s=storm.seconds * 2 + DRAIN_S + 300)
    if end.document is None or end.status is not RoundStatus.OK:
        broken = {"round": f"{end.status}: {end.error}"}
    else:
        broken = {}
    figures: dict[str, Any] = {"wall_s": round(end.wall_s, 1)}
    if end.document is not None:
        values, n = end.document["values"], end.document["n"]
        counts = {name: part["count"] for name, part in values.items() if part["count"] is not None}
        broken |= {name: counts.get(name) for name in NEVER if counts.get(name) != 0}
        if end.document["integrity"] is None or not n.get("changed_rows"):
            broken["nothing_compared"] = True
        else:
            figures |= {
                "signals": int(values["signals"]["median"]),
                "packets": end.document["integrity"]["offered"],
                "rows": n["changed_rows"],
                "unread": counts["unread_packets"],
                "restarts": counts["restarts"],
                "close_s": round(values["close_ms"]["median"] / 1e3, 2),
            }
    if not broken:
        shutil.rmtree(keep)
    return StormEnd(storm, broken, figures, end.log or "", str(keep) if broken else "")


class Storms:
    """Several storms side by side."""

    def __init__(self, side_by_side: int) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="asys-storms-"))
        self._launchers: queue.SimpleQueue[ForkedProcess] = queue.SimpleQueue()
        for _ in range(side_by_side):
            self._launchers.put(ForkedProcess())
        self._pool = ThreadPoolExecutor(side_by_side)
        self._stopped = threading.Event()

    def start(self, storms: Iterable[Storm]) -> list[Future[StormEnd]]:
        return [self._pool.submit(self._strike, storm) for storm in storms]

    def _strike(self, storm: Storm) -> StormEnd:
        launcher = self._launchers.get()
        try:
            return strike(storm, launcher, self._folder / f"{storm.fault}-{storm.bus}-{storm.seed}")
        finally:
            self._launchers.put(launcher)

    def close(self) -> None:
        """End what still strikes; remove the folder, unless a run that broke a promise lies in it."""
        self._pool.shutdown(cancel_futures=True)
        while not self._launchers.empty():
            self._launchers.get().close()
        if not any(self._folder.iterdir()):
            self._folder.rmdir()


def many(count: int, first_seed: int, seconds: float) -> list[Storm]:
    """`count` storms of all kinds in turn."""
    kinds = itertools.cycle(KINDS)
    return [Storm(*next(kinds), first_seed + index, seconds) for index in range(count)]


def strike_all(storms: list[Storm], side_by_side: int) -> Iterator[StormEnd]:
    """Each as it ends."""
    running = Storms(side_by_side)
    try:
        for future in running.start(storms):
            yield future.result()
    finally:
        running.close()


def told(end: StormEnd) -> str:
    """A line of JSON."""
    storm = end.storm
    line = {"fault": storm.fault, "bus": storm.bus, "seed": storm.seed, **end.figures}
    return json.dumps(line | ({"broken": end.broken, "kept": end.kept} if end.broken else {}))


def main(arguments: list[str]) -> int:
    count, seed = int(arguments[0]), int(arguments[1])
    seconds = float(arguments[2]) if arguments[2:] else 20.0
    side_by_side = int(arguments[3]) if arguments[3:] else os.cpu_count() or 1
    bad = 0
    for end in strike_all(many(count, seed, seconds), side_by_side):
        print(told(end), flush=True)
        if end.broken:
            bad += 1
            print(end.log, file=sys.stderr, flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    began = time.monotonic()
    code = main(sys.argv[1:])
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    sys.exit(code)
