"""Damaged input gets an answer or a typed error, never another exception, a signal or a hang.

Quick by itself; `make fuzz` (ASYS_FUZZ=1) runs 5,000 configurations, 2,000 archives and checkpoints and
60 seconds of damaged segments per ring.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from asys_bench.contracts.bus import BusPlugin
from asys_bench.registry import registry

HERE = Path(__file__).parent
FULL = os.environ.get("ASYS_FUZZ") == "1"
SEED = os.environ.get("ASYS_FUZZ_SEED", "1")
CONFIGS, ARCHIVES, CHECKPOINTS = (5000, 1000, 1000) if FULL else (60, 20, 15)
RING_S, RING_CASES = (60, 1 << 60) if FULL else (10, 40)


def fuzz(script: str, *arguments: object) -> dict[str, int]:
    """Run a fuzzer; on failure the message names its last case.

    In full it has a process of its own, with limited memory, so that a crash is seen as one.
    """
    if not FULL and script != "fuzz_ring.py":
        found: dict[str, int] = importlib.import_module(script.removesuffix(".py")).main(*arguments)
        return found
    command = [sys.executable, "-P", "-W", "ignore", str(HERE / script), *map(str, arguments)]
    path = os.pathsep.join((str(HERE), os.environ.get("PYTHONPATH", "")))
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=1800 if FULL else 90,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    said = done.stderr.splitlines()
    last = next((line for line in reversed(said) if line.isdigit()), "none")
    others = "\n".join(line for line in said if not line.isdigit())
    assert done.returncode == 0, f"case {last}, exit code {done.returncode}:\n{others[-3000:]}"
    outcome: dict[str, int] = json.loads(done.stdout)
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


@pytest.mark.parametrize("backend", ["cpp_spmc", "numba_ring"])
def test_any_segment_is_used_or_a_bus_error(backend):
    reason = registry("backend").get(backend, BusPlugin).unavailable()
    if reason:
        pytest.skip(reason)
    outcome = fuzz("fuzz_ring.py", backend, RING_S, SEED, RING_CASES)
    assert outcome["answered"] > 0
    assert outcome["BusError"] > 0
