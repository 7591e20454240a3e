"""Damaged input gets an answer or a typed error, never another exception, a signal or a hang.

Quick by itself; `make fuzz` (ASYS_FUZZ=1) runs 5,000 configurations, 2,000 archives and checkpoints, 500
hostile run directories and 60 seconds of damaged segments per ring.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from asys_bench.contracts.bus import BusPlugin
from asys_bench.registry import registry

HERE = Path(__file__).parent
FULL = os.environ.get("ASYS_FUZZ") == "1"
SEED = os.environ.get("ASYS_FUZZ_SEED", "1")
CONFIGS, ARCHIVES, CHECKPOINTS = (5000, 1000, 1000) if FULL else (60, 20, 15)
RUN_DIRS = 500
RING_S, RING_CASES = (60, 1 << 60) if FULL else (10, 40)


def fuzz(script: str, *arguments: object, timeout_s: int = 1800) -> dict[str, Any]:
    """Run a fuzzer; on failure the message names its last case.

    In full it has a process of its own, with limited memory, so that a crash is seen as one.
    """
    if not FULL and script != "fuzz_ring.py":
        found: dict[str, Any] = importlib.import_module(script.removesuffix(".py")).main(*arguments)
        return found
    command = [sys.executable, "-P", "-W", "ignore", str(HERE / script), *map(str, arguments)]
    path = os.pathsep.join((str(HERE), os.environ.get("PYTHONPATH", "")))
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=timeout_s if FULL else 400,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    said = done.stderr.splitlines()
    last = next((line for line in reversed(said) if line.isdigit()), "none")
    others = "\n".join(line for line in said if not line.isdigit())
    assert done.returncode == 0, f"case {last}, exit code {done.returncode}:\n{others[-3000:]}"
    outcome: dict[str, Any] = json.loads(done.stdout)
    print(script, *arguments, outcome)
    return outcome


def test_any_configuration_is_valid_or_a_config_error():
    outcome = fuzz("fuzz_config.py", CONFIGS, SEED)
    assert outcome["cases"] == CONFIGS
    assert outcome["ConfigError"] > CONFIGS // 2


def test_any_archive_is_read_or_an_archive_error_and_a_repair_leaves_a_valid_one():
    outcome = fuzz("fuzz_files.py", "archives", ARCHIVES, SEED)
    assert outcome["read"] > 0
    assert outcome["ArchiveError"] > 0
    assert outcome["repaired"] > 0


def test_any_checkpoint_is_read_or_a_checkpoint_error():
    outcome = fuzz("fuzz_files.py", "checkpoints", CHECKPOINTS, SEED)
    assert outcome["read"] > 0
    assert outcome["CheckpointError"] > 0


@pytest.mark.skipif(not FULL, reason="an hour and more: make fuzz")
@pytest.mark.timeout(4 * 3600)
def test_no_run_directory_leads_a_reader_or_a_repair_astray(tmp_path):
    """Each command on each directory ends with its own error or an answer, within 10 s of CPU and 256 MiB,
    and nothing outside of the directory has changed."""
    settings = {
        "run.dir": str(tmp_path), "run.name": "base", "host.options.ppo.total_timesteps": 160,
        "sinks.trainer.options.sae.d_sae": 32, "sinks.trainer.options.sae.k": 4,
        "sinks.trainer.options.sae.buffer_rows": 256, "sinks.trainer.options.sae.held_out_rows": 64,
        "sinks.trainer.options.sae.batch_rows": 64,
    }  # fmt: skip
    sets = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    command = [
        sys.executable,
        "-m",
        "asys_bench.cli.run",
        "--config",
        "profile_consumer.yaml",
        *sets,
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=500)
    (base,) = tmp_path.iterdir()
    outcome = fuzz("fuzz_run_dirs.py", base, RUN_DIRS, SEED, timeout_s=4 * 3600)
    assert outcome["cases"] == RUN_DIRS
    assert outcome["failures"] == []


@pytest.mark.parametrize(
    "backend", ["cpp_spmc", pytest.param("numba_ring", marks=pytest.mark.rest)]
)
def test_any_segment_is_used_or_a_bus_error(backend):
    reason = registry("backend").get(backend, BusPlugin).unavailable()
    if reason:
        pytest.skip(reason)
    outcome = fuzz("fuzz_ring.py", backend, RING_S, SEED, RING_CASES)
    assert outcome["answered"] > 0
    assert outcome["BusError"] > 0
