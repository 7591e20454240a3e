"""Three viewers replay a session on a live run for a minute: none is refused, and the index keeps its bound.

What they cost is measured by `eye_viewers.py` on a machine of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = os.environ.get("ASYS_SOAK") == "1"
MINUTES = "30" if SOAK else "1"


@pytest.mark.rest
@pytest.mark.stress
@pytest.mark.timeout(2700 if SOAK else 900)
def test_viewers_are_answered_and_the_index_keeps_its_bound(tmp_path: Path) -> None:
    script = Path(__file__).with_name("eye_viewers.py")
    shm = set(os.listdir("/dev/shm"))
    done = subprocess.run(
        [sys.executable, "-P", str(script), MINUTES, str(tmp_path / "eye")],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    told = json.loads(done.stdout)
    assert told["requests"] > 50
    assert told["events"] > 50
    assert told["refused"] == 0
    memory = told["index_process_mib"]
    assert memory["most"] <= memory["bound"], told
    assert set(os.listdir("/dev/shm")) <= shm
