"""Half an hour at full rate: memory and descriptors of every process stay as they are; with a budget
and uploads too, and then the host's steps are no slower.

`make soak`; ASYS_SOAK_MINUTES sets another length (3 is enough to see a gross leak).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("leaks.py")
STORED = SCRIPT.with_name("stored_run.py")
SOAK = os.environ.get("ASYS_SOAK") == "1"
MINUTES = float(os.environ.get("ASYS_SOAK_MINUTES", "30"))
SLOPE_MIB_PER_10MIN = 1.0
BUDGET_GIB = 0.5
"""Of stored_run.py."""


@pytest.mark.timeout(3600)
@pytest.mark.soak("half an hour")
def test_memory_and_descriptors_are_flat_at_full_rate(tmp_path):
    done = subprocess.run(
        [sys.executable, "-P", str(SCRIPT), "cpp_spmc", str(MINUTES), str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=60 * MINUTES + 300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    of_ours = (line for line in done.stdout.splitlines() if line.startswith("{"))
    *processes, run = map(json.loads, of_ours)  # the other lines are the monitor's
    assert run["failure"] is None
    assert run["restarts"] == 0
    assert run["descriptors_left"] == 0
    names = {one["process"] for one in processes}
    assert {"host", "watchdog", "trainer-0", "archive-0", "monitor-log"} <= names
    grown = [one for one in processes if one["slope_mib_per_10min"] >= SLOPE_MIB_PER_10MIN]
    assert not grown
    assert all(one["fds_max"] - one["fds_first"] <= 2 for one in processes), "open and close again"


@pytest.mark.timeout(3600)
@pytest.mark.soak("half an hour")
def test_a_budget_and_uploads_leave_memory_and_host_as_they_are(tmp_path):
    done = subprocess.run(
        [sys.executable, "-P", str(STORED), str(MINUTES), str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=60 * MINUTES + 600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    of_ours = (line for line in done.stdout.splitlines() if line.startswith("{"))
    *processes, run = map(json.loads, of_ours)
    assert run["restarts"] == 0
    assert not run["damaged"]
    assert run["most_archived_gib"] <= 1.25 * BUDGET_GIB
    assert run["uploader_cpu_s_per_gib"] <= 4
    assert run["step_ratio_high"] <= 1.03
    grown = [one for one in processes if one["slope_mib_per_10min"] >= SLOPE_MIB_PER_10MIN]
    assert [one["process"] for one in grown if one["process"] != "uploader"] == []
    assert all(abs(one["fds_slope_per_10min"]) < 1 for one in processes), "open and close again"
