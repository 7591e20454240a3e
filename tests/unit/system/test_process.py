"""Processes are told apart, and clocks too, in time namespaces with other clocks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from asys_bench.system import process
from asys_bench.system.process import is_same_start, own_clock, start_time

IN_TIME_NAMESPACE = Path(__file__).parents[2] / "fixtures/in_time_namespace.py"
ASK = (
    "import os, time; from asys_bench.system.process import *;"
    "print(time.monotonic(), own_clock(), start_time(os.getppid()), start_time(os.getpid()))"
)


def test_a_process_has_one_start_time_for_readers_of_every_clock(time_namespace):
    began = start_time(os.getpid())
    for seconds in (3 * 86400.4321, -60.0):
        child = subprocess.run(
            [*time_namespace(seconds), sys.executable, "-c", ASK],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        clock_s, clock, parent, itself = child.stdout.split()
        assert abs(float(clock_s) - seconds) > 1.0
        assert int(clock) != own_clock()
        assert is_same_start(int(parent), began)
        assert not is_same_start(int(itself), began)


def test_a_start_time_is_never_0_for_a_process_that_is_there(monkeypatch):
    assert start_time(process.REFERENCE_PID) > 2, "two ticks less is not gone either"
    assert start_time(2**22 + 5) == 0
    assert not is_same_start(0, 0)
    assert not is_same_start(0, 1)
    real = process.stat_fields
    monkeypatch.setattr(process, "stat_fields", lambda pid: [] if pid == 1 else real(pid))
    assert start_time(os.getpid()) == int(real(os.getpid())[19]) + 3, "/proc hides process 1"


def test_equal_clocks_are_equal_and_an_unknown_one_is_equal_to_none(monkeypatch):
    assert own_clock() == own_clock() != 0

    def refuse(path):
        raise PermissionError

    monkeypatch.setattr(process.os, "stat", refuse)
    assert own_clock() == 0


@pytest.fixture
def time_namespace():
    """seconds -> what goes before a command, so that its monotonic clock is that much ahead."""
    tried = subprocess.run([*entered(1.0), "true"], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip("no time namespace is to be had here: root, and Linux 6.3 or later")
    return entered


def entered(seconds):
    return [sys.executable, str(IN_TIME_NAMESPACE), str(seconds)]
