"""Liveness is asked of the kernel: zombies and reused pids do not fool it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from asys_bench.config.sections.run import WatchdogConfig
from asys_bench.contracts.launch import WorkerSpec
from asys_bench.contracts.stats import SlotField, StatsPage
from asys_bench.system.liveness import ProcessHandle, is_running, is_stopped, waited_for_cpu_ns
from asys_bench.system.process import own_clock, start_time
from asys_bench.workers import restart
from asys_bench.workers.restart import RestartBudget, Supervised


def test_a_zombie_is_dead():
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    handle = ProcessHandle(child.pid)
    assert handle.wait(60)
    os.kill(child.pid, 0)  # the zombie still answers this
    assert not handle.alive()
    child.wait()
    handle.kill()
    handle.close()


def test_whether_a_process_runs_is_one_answer_of_proc(monkeypatch):
    opened, real = [], open
    started = start_time(os.getpid())
    monkeypatch.setattr("builtins.open", lambda path, *a: opened.append(path) or real(path, *a))
    assert is_running(os.getpid(), started)
    assert opened.count(f"/proc/{os.getpid()}/stat") == 1, "two answers may be of two processes"
    assert not is_running(os.getpid(), started + 3)
    assert not is_running(2**22 + 5, started)


def test_a_stopped_process_is_alive_and_can_be_killed():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    handle = ProcessHandle(child.pid, start_time(child.pid))
    handle.kill(signal.SIGSTOP)
    assert handle.alive()
    handle.kill()
    assert handle.wait(60)
    assert child.wait() == -signal.SIGKILL
    handle.close()


def sleeper():
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


def test_a_pidfd_that_the_host_closed_or_reused_says_nothing_and_is_opened_again():
    child, stranger = sleeper(), sleeper()
    handle = ProcessHandle(child.pid)
    os.close(handle.fd)
    assert handle.alive(), "a closed number is no death"
    number = handle.fd
    theirs = os.pidfd_open(stranger.pid)
    os.dup2(theirs, number, inheritable=False)
    os.close(theirs)
    handle.kill()
    assert handle.wait(60)
    ours = handle.fd
    assert child.wait() == -signal.SIGKILL
    handle.close()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(ours)  # the kernel says less of it once the process was reaped
    assert stranger.poll() is None, "the host's own process"
    os.fstat(number)  # and its descriptor
    os.close(number)
    stranger.kill()
    stranger.wait()


def test_the_exit_code_is_known_once_and_to_nobody_when_somebody_else_has_waited():
    child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    handle = ProcessHandle(child.pid)
    assert handle.wait(60)
    assert handle.reap() == 3
    assert handle.reap() is None, "not 0: that would be an orderly end"
    handle.close()
    child.returncode = 3
    child = sleeper()
    handle = ProcessHandle(child.pid)
    handle.kill()
    assert handle.wait(60)
    assert handle.reap() == -signal.SIGKILL
    handle.close()
    child.returncode = -signal.SIGKILL


BUSY = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
if sys.argv[2] == "idle":
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
print(flush=True)
while True:
    pass
"""


def test_a_process_that_others_starve_waits_and_a_stopped_one_does_not():
    cpu = max(os.sched_getaffinity(0))
    children = [
        subprocess.Popen(
            [sys.executable, "-c", BUSY, str(cpu), how], stdout=subprocess.PIPE, text=True
        )
        for how in ("idle", "normal")
    ]
    try:
        starved, other = children
        for child in children:
            assert child.stdout.readline() == "\n"
        before = waited_for_cpu_ns(starved.pid)
        deadline = time.monotonic() + 60
        while waited_for_cpu_ns(starved.pid) - before < 300_000_000:
            assert time.monotonic() < deadline, "the idle process does not wait"
            time.sleep(0.05)
        starved.send_signal(signal.SIGSTOP)
        other.send_signal(signal.SIGSTOP)
        while not (is_stopped(starved.pid) and is_stopped(other.pid)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        stopped = waited_for_cpu_ns(starved.pid)
        time.sleep(0.2)
        assert waited_for_cpu_ns(starved.pid) == stopped
    finally:
        for child in children:
            child.kill()
            child.communicate()
    assert waited_for_cpu_ns(2**22 + 5) == 0


def test_silence_is_counted_without_the_time_that_a_worker_waited_for_a_cpu(monkeypatch):
    page = StatsPage.create(["host", "trainer-0"])
    spec = WorkerSpec("trainer-0", "sink", "sae_trainer", {})
    worker = Supervised(spec, page.slot("trainer-0"), RestartBudget(WatchdogConfig()))
    worker.handle = ProcessHandle(os.getpid())
    waited = [7_000_000_000]
    monkeypatch.setattr(restart, "waited_for_cpu_ns", lambda pid: waited[0])
    try:
        worker.slot.set(SlotField.CLOCK, own_clock())
        worker.slot.set(SlotField.HEARTBEAT_NS, 100_000_000_000)
        assert worker.silence_s(101_000_000_000) == (1.0, 0.0)  # what it waited before is past
        waited[0] += 8_000_000_000
        assert worker.silence_s(111_000_000_000) == (3.0, 8.0)
        worker.slot.set(SlotField.HEARTBEAT_NS, 112_000_000_000)
        assert worker.silence_s(112_500_000_000) == (0.5, 0.0)
        waited[0] = 0  # another process, or a kernel that stopped telling
        assert worker.silence_s(114_000_000_000) == (2.0, 0.0)
    finally:
        worker.handle.close()
        page.close()


def test_a_reused_pid_is_not_the_process_that_was_asked_for():
    with pytest.raises(ProcessLookupError):
        ProcessHandle(os.getpid(), start_time(os.getpid()) + 3)
    assert start_time(2**22 + 5) == 0
