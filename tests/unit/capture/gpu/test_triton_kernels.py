"""The Triton kernels write the references' bytes, shown in Triton's interpreter (no GPU needed)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from .triton_check import ENCODINGS

TIMEOUT_S = 3000
"""Far beyond the two minutes that it takes: against one that hangs, not a machine that is busy."""

pytestmark = [
    pytest.mark.skipif(
        find_spec("triton") is None,
        reason="Triton is not installed: make test-triton",
    ),
    pytest.mark.timeout(TIMEOUT_S + 100),
]


@pytest.fixture(scope="module")
def results():
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("triton_check.py"))],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("encoding", [*ENCODINGS, "the whole path"])
def test_the_interpreted_kernel_writes_the_bytes_of_the_reference(results, encoding):
    result = results[encoding]
    assert result["different"] == []
    assert result["cases"] > 0
    assert result["bytes"] > 0
