"""What is said of a process that the kernel may have ended for want of memory."""

from __future__ import annotations

import signal

import pytest

from asys_bench.system import process_usage
from asys_bench.system.process_usage import OutOfMemoryKills


@pytest.fixture
def kills(monkeypatch):
    count = [9]
    monkeypatch.setattr(process_usage, "_oom_kills", lambda: count[0])
    return count


def test_a_kill_while_the_oom_killer_was_at_work_is_explained_once(kills):
    out_of_memory = OutOfMemoryKills()
    assert out_of_memory.explain(signal.SIGKILL) == ""
    kills[0] += 1
    assert "for want of memory" in out_of_memory.explain(signal.SIGKILL)
    assert out_of_memory.explain(signal.SIGKILL) == ""
    kills[0] += 1
    assert "for want of memory" in out_of_memory.explain(None)


@pytest.mark.parametrize("sig", [signal.SIGSEGV, signal.SIGTERM, -1])
def test_the_oom_killer_ends_nobody_by_another_signal_or_an_exit_code(kills, sig):
    out_of_memory = OutOfMemoryKills()
    kills[0] += 1
    assert out_of_memory.explain(sig) == ""


def test_the_kernels_own_count_is_read():
    with open("/proc/vmstat") as file:
        counts = dict(line.split() for line in file)
    assert process_usage._oom_kills() >= int(counts["oom_kill"]) >= 0
