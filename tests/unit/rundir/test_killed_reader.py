"""A reader over 20 shards is killed, again and again, and each row comes once."""

import json
import random
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
write_shards = runpy.run_path(str(HERE / "rows_rig.py"))["write_shards"]


@pytest.mark.rest
@pytest.mark.timeout(600)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_reader_goes_on_from_its_last_state_and_gives_each_row_once(tmp_path, workers):
    rows = write_shards(tmp_path / "run")  # 840 rows: 53 batches
    state, lives = tmp_path / "state.json", 0
    moments = random.Random(f"{workers}")
    while not state.with_suffix(".ended").exists():
        lives += 1
        assert lives < 30
        before = len(json.loads(state.read_text())["seen"]) if state.exists() else 0
        most = before + moments.randint(60, 300) if lives <= 5 else 10**9
        process = subprocess.Popen(
            [sys.executable, str(HERE / "killed_reader.py"), tmp_path / "run", state, str(workers)]
        )
        try:
            while process.poll() is None:
                if state.exists() and len(json.loads(state.read_text())["seen"]) >= most:
                    process.send_signal(signal.SIGKILL)
                    break
                time.sleep(0.005)
            process.wait(60)
        finally:
            process.kill()
            process.wait()
        assert process.returncode in (0, -signal.SIGKILL)
    seen = [tuple(key) for key in json.loads(state.read_text())["seen"]]
    assert lives >= 3
    assert len(seen) == len(rows) == 840
    assert set(seen) == rows
    assert seen != sorted(seen)
