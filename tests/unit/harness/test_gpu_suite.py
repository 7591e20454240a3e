"""`make gpu` where there is no GPU: every part runs, and no figure of a simulated one is given."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

GPU = Path(__file__).parents[3] / "suites/gpu"
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: make gpu")


def _measure(out: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-P", str(GPU / "measure.py"), "--out", str(out), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    found: dict[str, Any] = json.loads((out / "gpu.json").read_text())
    return done.returncode, found


def _numbers(found: object) -> list[float]:
    if isinstance(found, dict):
        return [n for name, value in found.items() if name != "seconds" for n in _numbers(value)]
    if isinstance(found, list):
        return [n for value in found for n in _numbers(value)]
    return [found] if isinstance(found, int | float) else []


@pytest.mark.rest
@pytest.mark.timeout(600)
def test_a_part_runs_on_the_simulated_gpu_and_gives_no_figure(tmp_path: Path) -> None:
    code, found = _measure(tmp_path, "--parts", "ring_fill")
    assert code == 0
    assert found["machine"]["device"] == "simulated"
    figures = found["parts"]["ring_fill"]["figures"]
    assert figures == dict.fromkeys(
        ("ring_gbps", "pinned_copy_gbps", "ratio"), "unmeasured: no GPU here"
    )


@pytest.mark.rest
@pytest.mark.timeout(600)
def test_every_part_but_the_tests_runs_to_its_end(tmp_path: Path) -> None:
    names = "hook_cost,observed_training,sae_step,sae_parts,shared_gpu"
    code, found = _measure(tmp_path, "--parts", names, "--seconds", "240")
    assert code == 0, found
    assert ",".join(found["parts"]) == names
    kept = {n: p["figures"] for n, p in found["parts"].items() if not n.startswith("sae_")}
    assert _numbers(kept) == []
    steps, pieces = (found["parts"][name]["figures"] for name in ("sae_step", "sae_parts"))
    for name in ("asys", "asys float32"):
        assert steps[name]["rows_per_s"] == "unmeasured: no GPU here"
    assert not any("failed" in steps[name] for name in ("sparsify", "sae_lens"))
    assert {v for n, v in pieces.items() if n.endswith("_ms")} == {"unmeasured: no GPU here"}


@pytest.mark.rest
def test_a_part_without_time_is_said_and_the_file_is_there(tmp_path: Path) -> None:
    code, found = _measure(tmp_path, "--parts", "ring_fill", "--seconds", "1")
    assert code == 1
    assert found["parts"] == {"ring_fill": {"failed": "no time was left for it"}}
