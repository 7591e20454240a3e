"""`python lockstep.py RUN_DIR OPTIONS(JSON) STEPS(JSON)`: a page that changes, read by the monitors
`logging_csv` and `tracker` at the same moments. Each of STEPS is what the page says then; one process is one
life of the monitors."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from asys_bench.contracts.bus import BusAccount, GroupAccount
from asys_bench.contracts.monitor import BaseMonitor, MonitorContext
from asys_bench.contracts.stats import RunState, StatsPage
from asys_bench.monitors.logging_csv import LoggingCSVMonitor, LoggingCSVOptions
from asys_bench.monitors.tracker.plugin import TrackerMonitor, TrackerOptions

HOOK = "layers.3#wide [x]"
CONFIG = {
    "run": {"name": "run", "seed": 7},
    "host": {
        "kind": "script",
        "options": {"script": {"args": ["--lr", "1", "--api-key", "SECRETARGUMENT"]}},
    },
    "monitors": {"alarm": {"options": {"webhook": "https://hooks.example/services/SECRETHOOK"}}},
    "storage": {"uri": "s3://bucket/x"},
    "note": os.environ.get("SOME_API_TOKEN", ""),
}


def account(produced: int) -> BusAccount:
    return BusAccount(
        produced, {"full": 2}, 64 * produced, (GroupAccount("train", produced - 2, 0, 0, 0, 0),)
    )


def main(run_dir: Path, options: dict[str, Any], steps: list[dict[str, float]]) -> None:
    page = StatsPage.create(["host", "trainer-0", "monitor-tracker"])
    page.run_state = RunState.RUNNING
    produced = [0]
    context = MonitorContext(
        run_dir, "a-run", page, lambda: account(produced[0]), CONFIG, "env step", False,
        attempt=int(os.environ.get("ATTEMPT", "0")), slot=page.slot("monitor-tracker"),
    )  # fmt: skip
    monitors: list[BaseMonitor] = [
        LoggingCSVMonitor(
            LoggingCSVOptions(interval_s=0.01, tensorboard=False, plain_interval_s=0)
        ),
        TrackerMonitor(TrackerOptions.model_validate(options)),
    ]
    for monitor in monitors:
        monitor.open(context)
    host, trainer = page.slot("host"), page.slot("trainer-0")
    for index, step in enumerate(steps):
        produced[0] = int(step["produced"])
        host.counter("host_steps").set(int(step["host_steps"]))
        host.gauge("host_reward_mean").set(step["reward_mean"])
        trainer.counter("sae_rows_trained", hook=HOOK).set(int(step["rows"]))
        for name in ("sae_loss", "sae_fvu", "sae_l0"):
            trainer.gauge(name, hook=HOOK).set(step[name])
        last = index == len(steps) - 1
        for monitor in monitors:
            monitor.tick(RunState.STOPPED if last else RunState.RUNNING)
        time.sleep(0.05)
    for monitor in monitors:
        monitor.close()
    counted = page.slot("monitor-tracker").metrics()
    print(json.dumps({name: metric.value for name, metric in counted.items()}))  # type: ignore[union-attr]
    sys.stdout.flush()
    os._exit(0)  # as a worker leaves: nothing waits for a tracker's own threads


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3]))
