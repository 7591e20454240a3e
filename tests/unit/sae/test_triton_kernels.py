"""The Triton kernels train as the compiled ones do, shown in Triton's interpreter (no GPU needed)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from asys_bench.sae import ARCHITECTURES
from asys_bench.sae.kernels import native

TIMEOUT_S = 3000
"""Against one that hangs, not a machine that is busy."""

pytestmark = [
    pytest.mark.skipif(
        find_spec("triton") is None,
        reason="Triton is not installed: make test-triton",
    ),
    pytest.mark.skipif(native.kernels() is None, reason="built without a compiler"),
    pytest.mark.timeout(TIMEOUT_S + 100),
]


def _run(script: str, *arguments: str, interpret: bool) -> dict[str, dict[str, float]]:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script)), *arguments],
        env={**os.environ, "TRITON_INTERPRET": "1" if interpret else "0"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def _agree(steps: int, *architectures: str) -> None:
    found = _run("triton_sae_check.py", str(steps), *architectures, interpret=True)
    assert set(found) == set(architectures)
    for architecture, result in found.items():
        assert result["steps"] == steps, architecture
        assert result["loss"] < 1e-5, architecture
        assert result["gradient"] < 1e-5, architecture
        assert result["update"] < 1e-5, architecture
        assert result["apart"] < 0.01, architecture
        if architecture == "topk":
            assert result["same_support"] >= 0.999


def test_interpreted_steps_from_one_state_agree() -> None:
    _agree(3, "topk", "matryoshka")


@pytest.mark.rest
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_200_interpreted_steps_agree(architecture: str) -> None:
    _agree(200, architecture)


@pytest.mark.rest
def test_the_kernels_compile_for_real_gpus(tmp_path: Path) -> None:
    """PTX of each, for a GPU that is not here."""
    os.environ["TRITON_CACHE_DIR"] = str(tmp_path)
    try:
        found = _run("triton_sae_compile.py", "80", "90", interpret=False)
    finally:
        del os.environ["TRITON_CACHE_DIR"]
    for capability in ("80", "90"):
        wanted = {"_decode", "_pair_dots", "_accumulate", "_project", "_adam"}
        assert set(found[capability]) == wanted
        assert all(size > 0 for size in found[capability].values())
