"""Readers come and go, killed and stopped as well, sixteen at a time: the run's own groups get every
packet, the account is exact, and there is room for as many at the end as at the start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from asys_bench.config import load_config
from asys_bench.contracts.run_files import READERS_DIR
from asys_bench.contracts.stats import SlotField
from asys_bench.harness.faults.host_process import HostTask, outcome_account, read_outcome
from asys_bench.harness.faults.observed import ObservedRun
from asys_bench.harness.plugins import register_extra
from asys_bench.system.process_usage import process_usage

PIPELINE = Path(__file__).parents[2] / "suites/pipelines/chaos.yaml"
SCRIPT = Path(__file__).with_name("subscribers.py")
SOAK = os.environ.get("ASYS_SOAK") == "1"
COMINGS = 500 if SOAK else 24
AT_ONCE = 16
ROOM = {"cpp_spmc": 5, "numba_ring": 5, "mp_queue": 16}
"""A ring has seven groups, of which trainer and archive are two; the reader's seats are sixteen."""
REFUSAL = {
    "cpp_spmc": "a bus has at most 7 groups",
    "numba_ring": "a bus has at most 7 groups",
    "mp_queue": "16 readers are attached already",
}


@pytest.mark.rest
@pytest.mark.stress
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "backend",
    [
        "cpp_spmc",
        pytest.param("numba_ring", marks=pytest.mark.soak("minutes")),
        pytest.param("mp_queue", marks=pytest.mark.soak("minutes")),
    ],
)
def test_readers_that_come_and_go_disturb_nobody_and_leave_nothing(backend, tmp_path):
    register_extra({})
    sets = [f"bus.backend={backend}", "watchdog.heartbeat_timeout_s=30"]  # on a busy machine, too
    config = load_config(str(PIPELINE), sets, env={}).config
    task = HostTask(str(tmp_path), config.to_plain(), check_weights=True, record_steps=False)
    shm = set(os.listdir("/dev/shm"))
    run = ObservedRun.start(task, tmp_path / "runs", {})
    try:
        assert run.attach(120), read_outcome(tmp_path)
        pids = {"host": run.process.pid, "watchdog": run.pid("watchdog")}
        before = {name: (descriptors(pid), mib(pid)) for name, pid in pids.items()}
        done = subprocess.run(
            [sys.executable, "-P", str(SCRIPT), str(run.run_dir), str(COMINGS), str(AT_ONCE), "1"],
            capture_output=True, text=True, check=False, timeout=800,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        found = json.loads(done.stdout)
        after = {name: (descriptors(pid), mib(pid)) for name, pid in pids.items()}
        restarts = sum(run.slot(name).get(SlotField.RESTARTS) for name in run.others())
        seats = list((run.run_dir / READERS_DIR).iterdir())
        run.stop_host()
        assert run.process.wait(120) == 0
        assert run.wait_gone(10.0) == []
    finally:
        run.close()
    outcome = read_outcome(tmp_path)
    account = outcome_account(outcome)
    print(f"{backend}: {found}; descriptors and MiB before {before}, after {after}; {account}")

    assert found["room"] == found["room_after"] == ROOM[backend]
    assert REFUSAL[backend] in found["refusal"]
    assert all(REFUSAL[backend] in said for said in found["refusals"])
    assert sum(found["became"].values()) == COMINGS
    assert min(found["became"].get(mode, 0) for mode in ("leave", "kill", "stop", "early")) > 0
    assert restarts == 0
    for name in pids:
        assert abs(after[name][0] - before[name][0]) <= 2, "descriptors, but for one in use"
    assert len(seats) <= AT_ONCE
    assert outcome["weights"] == outcome["weights_unobserved"]
    assert outcome["descriptors_left"] == 0
    assert {name for name in os.listdir("/dev/shm") if "asys" in name} <= shm
    assert not any(account.imbalance(group) for group in account.groups)
    for name in ("trainer", "archive"):
        group = account.group(name)
        assert (group.lost_in_flight, group.dead_lettered, group.ready) == (0, 0, 0), name
        assert group.delivered == account.produced - account.dropped_total - group.missed
    assert account.dropped_total == 0, "no reader filled the bus"


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def mib(pid):
    return round(process_usage(pid)[1] / (1 << 20), 1)
