"""Three viewers replay a session on a live run: none is refused, and the index keeps its bound (`make soak`).

What they cost is measured by `eye_viewers.py` on a machine of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MINUTES = "30"


@pytest.mark.rest
@pytest.mark.timeout(2700)
@pytest.mark.soak("half an hour")
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
