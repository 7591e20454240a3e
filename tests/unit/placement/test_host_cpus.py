"""Workers that nobody has pinned keep off the CPU of a busy host, and have every CPU as long as none is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from asys_bench.placement import host_cpus
from asys_bench.placement.host_cpus import LOOK_NS, SLACK, HostCpus, KeepClear
from tests.conformance.support import eventually

SPIN = "while True: pass"
SLEEP = (
    "import threading, time; threading.Thread(target=time.sleep, args=(600,), daemon=True).start(); "
    "print('up', flush=True); time.sleep(600)"
)


@pytest.fixture
def run():
    started = []

    def start(code):
        started.append(subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def masks(pid):
    return {frozenset(os.sched_getaffinity(int(one))) for one in os.listdir(f"/proc/{pid}/task")}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU cannot be kept clear")
def test_every_thread_leaves_the_cpu_of_a_host_that_never_sleeps_and_comes_back(run):
    everywhere = frozenset(os.sched_getaffinity(0))
    host, worker = run(SPIN), run(SLEEP)
    worker.stdout.readline()
    clear = KeepClear(host.pid)
    assert clear.confine([worker.pid]) == everywhere, "nothing is known at the first look"
    eventually(lambda: len(clear.confine([worker.pid])) == len(everywhere) - 1, "a busy host")
    (confined,) = masks(worker.pid)
    assert len(everywhere - confined) == 1
    os.sched_setaffinity(host.pid, confined)
    eventually(lambda: not clear.confine([worker.pid]) >= confined, "the host's other CPU")
    os.kill(host.pid, signal.SIGSTOP)
    eventually(lambda: clear.confine([worker.pid]) == everywhere, "a host that sleeps")
    os.kill(host.pid, signal.SIGCONT)
    eventually(lambda: clear.confine([worker.pid]) != everywhere, "a busy host again")
    clear.release([worker.pid])
    assert masks(worker.pid) == {everywhere}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU cannot be kept clear")
def test_what_somebody_else_has_pinned_meanwhile_stays_there_until_it_is_adopted(run):
    everywhere = frozenset(os.sched_getaffinity(0))
    host, ours, theirs = run(SPIN), run(SLEEP), run(SLEEP)
    theirs.stdout.readline()
    clear = KeepClear(host.pid)
    clear.confine([ours.pid, theirs.pid])
    theirs_alone = frozenset({min(everywhere)})
    for thread in os.listdir(f"/proc/{theirs.pid}/task"):
        os.sched_setaffinity(int(thread), theirs_alone)
    for cpu in sorted(everywhere)[:2]:
        os.sched_setaffinity(host.pid, {cpu})
        eventually(
            lambda cpu=cpu: clear.confine([ours.pid, theirs.pid]) == everywhere - {cpu}, "the CPU"
        )
        assert masks(theirs.pid) == {theirs_alone}
    clear.release([ours.pid, theirs.pid])
    assert (masks(ours.pid), masks(theirs.pid)) == ({everywhere}, {theirs_alone})
    clear.adopt(theirs.pid)
    assert masks(theirs.pid) == {everywhere}


def test_who_is_gone_is_nobody_to_confine_or_to_keep_clear_of(run):
    gone = run("")
    gone.wait()
    clear = KeepClear(gone.pid)
    for _ in range(2):
        assert clear.confine([gone.pid]) == os.sched_getaffinity(0)
        clear._host._looked_ns -= LOOK_NS


@pytest.mark.parametrize(
    ("shares", "cpus", "busy"),
    [
        ([1.0], 2, 1),
        ([1.0], 1, 0),
        ([0.95, SLACK], 2, 1),
        ([0.95, 0.6], 2, 0),  # its second thread has the other CPU
        ([1.0, 1.0], 2, 0),
        ([1.0, 1.0], 3, 2),
        ([1.0, 1.0, 0.6], 3, 0),
        ([0.8], 2, 0),  # it sleeps in between: workers may have the rest
        ([0.05] * 40, 2, 0),
    ],
)
def test_a_host_is_kept_clear_of_while_it_leaves_a_cpu(monkeypatch, shares, cpus, busy):
    host, second = HostCpus(os.getpid(), cpus), 1_000_000_000
    now = [second]
    monkeypatch.setattr(host_cpus, "monotonic_ns", lambda: now[0])
    readings = [
        dict.fromkeys(range(len(shares)), 7),
        {n: 7 + int(one * second) for n, one in enumerate(shares)},
    ]
    monkeypatch.setattr(host, "_read", lambda: readings.pop(0))
    assert host.now() == frozenset()
    now[0] += second
    host.now()
    assert len(host._busy) == busy
