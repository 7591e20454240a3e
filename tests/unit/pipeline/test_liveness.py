"""Liveness is asked of the kernel: zombies and reused pids do not fool it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from asys_bench.pipeline.liveness import ProcessHandle, start_time


def test_a_zombie_is_dead():
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    handle = ProcessHandle(child.pid)
    assert handle.wait(20)
    os.kill(child.pid, 0)  # the zombie still answers this
    assert not handle.alive()
    child.wait()
    handle.kill()
    handle.close()


def test_a_stopped_process_is_alive_and_can_be_killed():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    handle = ProcessHandle(child.pid, start_time(child.pid))
    handle.kill(signal.SIGSTOP)
    assert handle.alive()
    handle.kill()
    assert handle.wait(10)
    assert child.wait() == -signal.SIGKILL
    handle.close()


def test_a_reused_pid_is_not_the_process_that_was_asked_for():
    with pytest.raises(ProcessLookupError):
        ProcessHandle(os.getpid(), start_time(os.getpid()) + 1)
    assert start_time(2**22 + 5) == 0
