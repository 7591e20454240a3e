"""One host at a time on a run, and none while workers of another still write."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from asys_bench.system.files.below import UnsafeFileError
from asys_bench.system.process import start_time
from asys_bench.workers.run_lock import RunBusyError, RunLock, join_work

HOLD = """
import sys, time
from pathlib import Path
from asys_bench.workers.run_lock import RunLock, join_work
run = Path(sys.argv[2])
held = RunLock(run) if sys.argv[1] == "host" else join_work(run)
print("held", flush=True)
time.sleep(float(sys.argv[3]))
"""


def holder(role: str, run_dir: Path, seconds: float = 60) -> subprocess.Popen[bytes]:
    """A process that holds the run as `role`."""
    command = [sys.executable, "-c", HOLD, role, str(run_dir), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    process.stdout.close()
    return process


def test_a_second_host_is_refused_with_who_the_first_is_and_takes_over_when_that_is_killed(
    tmp_path: Path,
) -> None:
    first = holder("host", tmp_path)
    started = start_time(first.pid)
    with pytest.raises(RunBusyError) as refused:
        RunLock(tmp_path)
    said = str(refused.value)
    assert f"pid {first.pid} (start {started}) on {os.uname().nodename}" in said
    first.send_signal(signal.SIGKILL)
    first.wait()
    lock = RunLock(tmp_path)
    about = json.loads((tmp_path / ".host.lock").read_text())
    assert (about["pid"], about["start"]) == (os.getpid(), start_time(os.getpid()))
    lock.release()
    lock.release()
    RunLock(tmp_path).release()


def test_a_host_waits_for_the_workers_of_a_host_that_is_gone(tmp_path: Path) -> None:
    worker = holder("worker", tmp_path)
    before = time.monotonic()
    with pytest.raises(RunBusyError, match=r"workers of it have not left within 0\.2 s"):
        RunLock(tmp_path, wait_s=0.2)
    assert time.monotonic() - before >= 0.2
    worker.kill()
    worker.wait()
    RunLock(tmp_path, wait_s=0.2).release()


def test_workers_share_the_run_and_one_that_comes_after_another_host_leaves(tmp_path: Path) -> None:
    import fcntl

    ours, theirs = join_work(tmp_path), join_work(tmp_path)
    assert ours is not None
    assert theirs is not None
    os.close(ours)
    os.close(theirs)
    taker = os.open(tmp_path / ".workers.lock", os.O_RDWR)
    fcntl.flock(taker, fcntl.LOCK_EX)  # as a host does while it looks
    assert join_work(tmp_path) is None
    os.close(taker)


def test_a_child_that_the_host_forked_does_not_hold_the_run(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    running, begun = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(begun, b"x")
        time.sleep(30)
        os._exit(0)
    try:
        os.read(running, 1)
        os.close(lock._descriptor.number)  # as the host's death does, and no unlocking
        RunLock(tmp_path).release()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(running)
        os.close(begun)


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("theirs")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / ".host.lock").symlink_to(outside)
    with pytest.raises(UnsafeFileError, match="symbolic link"):
        RunLock(run_dir)
    assert outside.read_text() == "theirs"
