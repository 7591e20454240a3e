"""A run at full rate, watched from outside: resident memory and descriptors of every process.

    python leaks.py BACKEND MINUTES FOLDER [PAUSE_MS]        prints a line per process as JSON

The host trains without a pause (or with one between steps, where the machine is shared), every
activation is captured, a trainer and an archiver consume, the monitor writes. Closed shards are removed
as they come, or the disk would be full before the hour. Slopes are least squares over the samples after
the warm-up, the first fifth of the time.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from asys_bench.config import load_config
from asys_bench.contracts.stats import SlotField
from asys_bench.harness.faults.host_process import OUTCOME_FILE, HostTask
from asys_bench.harness.faults.observed import ObservedRun
from asys_bench.harness.plugins import register_extra

PIPELINE = Path(__file__).parents[2] / "suites/pipelines/chaos.yaml"
EVERY_S = 5.0
WARM_UP = 0.2
TEN_MINUTES_S = 600.0


def memory_mib(pid: int) -> tuple[float, float]:
    """(resident, of it neither file nor shared memory), MiB."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        fields = dict(line.split(":", 1) for line in file if ":" in line)
    return tuple(int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon"))


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def watch(
    backend: str, minutes: float, folder: Path, pause_ms: float = 0
) -> list[dict[str, object]]:
    """Run for so long; a summary per process."""
    register_extra({})
    config = load_config(
        str(PIPELINE),
        [
            f"bus.backend={backend}",
            f"host.options.synthetic.pause_ms={pause_ms}",
            "bus.on_full=sample",
            "monitors={log: {kind: logging_csv}}",
        ],
        env={},
    ).config
    task = HostTask(str(folder), config.to_plain(), check_weights=False, record_steps=False)
    run = ObservedRun.start(task, folder / "runs", {})
    process = run.process
    samples: dict[int, list[tuple[float, float, float, int]]] = {}
    try:
        if not run.attach(120):
            raise RuntimeError((folder / OUTCOME_FILE).read_text())
        names = {run.pid(name): name for name in run.others()} | {process.pid: "host"}
        for pid in run.processes():
            names.setdefault(pid, f"other {pid}")
        begin = time.monotonic()
        while (now := time.monotonic() - begin) < 60 * minutes:
            for pid in names:
                samples.setdefault(pid, []).append((now, *memory_mib(pid), descriptors(pid)))
            for sidecar in run.run_dir.glob("archive/*/*.json"):
                sidecar.with_suffix(".arrows").unlink(missing_ok=True)
                sidecar.unlink()
            time.sleep(EVERY_S)
        restarts = {name: run.slot(name).get(SlotField.RESTARTS) for name in run.others()}
        produced = run.account().produced
        run.stop_host()
        process.wait(60)
    finally:
        run.close()
    outcome = json.loads((folder / OUTCOME_FILE).read_text())
    found = [summary_of(names[pid], np.array(rows)) for pid, rows in samples.items()]
    found.append(
        {
            "run": backend, "minutes": minutes, "steps": outcome.get("steps"), "produced": produced,
            "restarts": sum(restarts.values()), "failure": outcome.get("failure"),
            "descriptors_left": outcome.get("descriptors_left"),
        }
    )  # fmt: skip
    return found


def summary_of(name: str, rows: np.ndarray) -> dict[str, object]:
    tenths = rows[np.linspace(0, len(rows) - 1, 11).astype(int), 1]
    rows = rows[rows[:, 0] >= WARM_UP * rows[-1, 0]]
    seconds = rows[:, 0]
    slope, anon = (np.polyfit(seconds, rows[:, i], 1)[0] * TEN_MINUTES_S for i in (1, 2))
    return {
        "process": name,
        "rss_mib_by_tenths": [round(float(mib), 1) for mib in tenths],
        "slope_mib_per_10min": round(float(slope), 3),
        "anon_slope_mib_per_10min": round(float(anon), 3),
        "fds_first": int(rows[0, 3]),
        "fds_last": int(rows[-1, 3]),
        "fds_max": int(rows[:, 3].max()),
        "fds_slope_per_10min": round(
            float(np.polyfit(seconds, rows[:, 3], 1)[0]) * TEN_MINUTES_S, 3
        ),
    }


if __name__ == "__main__":
    backend, minutes, folder, *pace = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    for line in watch(backend, float(minutes), Path(folder), *map(float, pace)):
        print(json.dumps(line), flush=True)
