"""A run with a budget and a copy in an S3 server, watched for as long as one likes.

    python stored_run.py MINUTES FOLDER [BLOCK_S]        prints a line of JSON per process, one at the end

The host, a small model that trains without a pause, has a core of its own; the workers and the server
have the others. The uploader is stopped in every other block of BLOCK_S seconds (SIGSTOP), so that the
host's steps with and without uploads are compared within one process and one minute; what it missed it
sends in the next block, at twice the density. The first fifth of the time is not judged.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from leaks import WARM_UP, descriptors, memory_mib, summary_of

from asys_bench import observe
from asys_bench.contracts.stats import SlotField
from asys_bench.harness.judging.stats import ratio_span
from asys_bench.rundir.live_run import LiveRun
from asys_bench.rundir.verify import verify_run
from asys_bench.system.process_usage import process_usage

PORT = 5128
SERVER = Path(__file__).with_name("light_s3.py")
S3 = {
    "AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{PORT}",
}  # fmt: skip
BUDGET_GIB = 0.5
WIDTH, ROWS, RATE = 576, 64, 0.15
CONFIG = f"""
extends: profile_consumer.yaml
run: {{dir: %(folder)s/runs}}
bus: {{backend: cpp_spmc}}
hooks: [{{match: "0", sampling: {{max_rate: {RATE}, min_rate: {RATE}}}}}]
sinks:
  trainer: {{options: {{sae: {{d_sae: 2048, k: 32, threads: 1}}}}}}
  archive: {{options: {{max_gib: {BUDGET_GIB}, shard_rotate_mib: 32}}}}
storage: {{uri: "s3://soak/{{run_id}}"}}
watchdog: {{heartbeat_timeout_s: %(patience)g, startup_timeout_s: 120}}
"""


class Host:
    """A model that trains; counts its steps."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(WIDTH, WIDTH), torch.nn.GELU(), torch.nn.Linear(WIDTH, WIDTH)
        )
        self._optimizer = torch.optim.Adam(self.model.parameters(), 1e-4)
        self._rows = torch.randn(ROWS * 64, WIDTH)
        self.steps = 0

    def run(self, seconds: float) -> float:
        """Steps per second over so long."""
        begin, first = time.monotonic(), self.steps
        while (spent := time.monotonic() - begin) < seconds:
            at = ROWS * (self.steps % 64)
            batch = self._rows[at : at + ROWS]
            loss = (self.model(batch) - batch).square().mean()
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._optimizer.step()
            self.steps += 1
        return (self.steps - first) / spent


def cpu_s(pid: int) -> float:
    """Of a process that is there, in user and kernel mode."""
    usage = process_usage(pid)
    assert usage is not None, f"process {pid} is gone"
    return usage[0]


def archived_gib(run_dir: Path) -> float:
    shards = run_dir.glob("archive/*/*.arrows")
    total = 0
    for shard in shards:
        try:
            total += shard.stat().st_size
        except OSError:
            continue  # the budget was quicker
    return total / 2**30


def soak(minutes: float, folder: Path, block_s: float) -> list[dict[str, object]]:
    from pyarrow import fs

    os.environ.update(S3)
    cores = sorted(os.sched_getaffinity(0))
    mine, others = cores[:1], cores[1:] or cores
    os.sched_setaffinity(0, others)  # what is started now is outside the host's core
    server = subprocess.Popen(
        [sys.executable, "-P", str(SERVER), str(PORT)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for_bucket(fs)
        torch.set_num_threads(1)
        host = Host()
        config = folder / "config.yaml"
        config.write_text(CONFIG % {"folder": folder, "patience": 4 * block_s})
        with observe(host.model, config) as observation:
            run_dir = observation.run_dir
            live = LiveRun.attach(run_dir)
            os.sched_setaffinity(0, mine)
            names = {live.page.slot(name).get(SlotField.PID): name for name, _ in live.page.slots()}
            uploader = next(pid for pid, name in names.items() if "upload" in name)
            spent_before_s, served_before_s = cpu_s(uploader), cpu_s(server.pid)
            samples: dict[int, list[tuple[float, float, float, int]]] = {pid: [] for pid in names}
            rates: list[tuple[float, float]] = []
            most, order = 0.0, (True, False)
            begin = time.monotonic()
            while (now := time.monotonic() - begin) < 60 * minutes:
                pair = {}
                for stop in order:
                    os.kill(uploader, signal.SIGSTOP if stop else signal.SIGCONT)
                    pair[stop] = host.run(block_s)
                    for pid, rows in samples.items():
                        rows.append((now, *memory_mib(pid), descriptors(pid)))
                    most = max(most, archived_gib(run_dir))
                if now >= WARM_UP * 60 * minutes:
                    rates.append((pair[True], pair[False]))
                order = order[::-1]
            os.kill(uploader, signal.SIGCONT)
            restarts = sum(live.page.slot(n).get(SlotField.RESTARTS) for n in names.values())
            sent_bytes = live.page.slot(names[uploader]).metrics()["storage_bytes"].value
            spent_s, sent_gib = cpu_s(uploader) - spent_before_s, sent_bytes / 2**30
            served_s = cpu_s(server.pid) - served_before_s
        without, with_uploads = np.array(rates).T
        # A step's time is the inverse of the rate.
        ratio = ratio_span(list(1 / with_uploads), list(1 / without), 0.05)
        found = [summary_of(names[pid], np.array(rows)) for pid, rows in samples.items()]
        checked = verify_run(run_dir)
        found.append(
            {
                "minutes": minutes, "pairs": len(rates), "steps": host.steps, "restarts": restarts,
                "sent_gib": round(sent_gib, 3), "uploader_cpu_s": round(spent_s, 2),
                "uploader_cpu_s_per_gib": round(spent_s / max(sent_gib, 1e-9), 3),
                "server_cpu_s_per_gib": round(served_s / max(sent_gib, 1e-9), 3),
                "most_archived_gib": round(most, 3), "damaged": checked.damaged,
                "step_ratio": ratio.estimate, "step_ratio_low": ratio.low, "step_ratio_high": ratio.high,
            }
        )  # fmt: skip
        return found
    finally:
        server.kill()
        server.wait()


def _wait_for_bucket(fs: object) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            files = fs.S3FileSystem(  # type: ignore[attr-defined]
                endpoint_override=f"127.0.0.1:{PORT}", scheme="http", allow_bucket_creation=True
            )
            return files.create_dir("soak")
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


if __name__ == "__main__":
    minutes, folder, *block = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    for line in soak(float(minutes), Path(folder), float(block[0]) if block else 10.0):
        print(json.dumps(line), flush=True)
