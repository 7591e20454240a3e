"""An eyepiece that a run has started leaves when the run has ended and nobody looks any more."""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asys_bench.eye import beside_run
from asys_bench.eye.beside_run import LINGER_S, LONGEST_S, RunEnd
from asys_bench.system.liveness import ProcessHandle
from asys_bench.system.process import start_time

NOBODY = SimpleNamespace(open=0, left_at=-math.inf)
SOMEBODY = SimpleNamespace(open=1, left_at=-math.inf)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(beside_run, "time", made)
    return made


@pytest.fixture
def host() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def told(run_dir: Path, pid: int, end: str | None, **more: Any) -> None:
    document = {
        "schema": "asys.run/1", "run_id": "r", "hooks": ["h"], "host_pid": pid,
        "host_start": start_time(pid), "attempts": [{"end": end}], **more,
    }  # fmt: skip
    (run_dir / "run.json").write_text(json.dumps(document))


@pytest.fixture
def end(tmp_path: Path, host: subprocess.Popen[bytes], clock: Clock) -> RunEnd:
    told(tmp_path, host.pid, None)
    return RunEnd(tmp_path, ProcessHandle(host.pid))


def test_it_stays_while_the_run_goes_on(end, tmp_path, clock):
    clock.now += 10 * LONGEST_S
    assert not end.is_over(NOBODY)
    (tmp_path / "run.json").write_text("{")  # while it is damaged too
    assert not end.is_over(NOBODY)


def test_it_leaves_at_once_when_nobody_looked(end, tmp_path, host):
    told(tmp_path, host.pid, "finished")
    assert end.is_over(NOBODY)


def test_a_failed_start_ends_it_though_the_host_lives(end, tmp_path, host):
    told(tmp_path, host.pid, "failed", result=None)
    assert end.is_over(NOBODY)


def test_it_stays_for_an_open_page_but_not_for_ever(end, tmp_path, host, clock):
    told(tmp_path, host.pid, "finished")
    assert not end.is_over(SOMEBODY)
    clock.now += LONGEST_S - 1
    assert not end.is_over(SOMEBODY)
    clock.now += 2
    assert end.is_over(SOMEBODY)


def test_a_page_that_is_loaded_again_finds_it(end, tmp_path, host, clock):
    told(tmp_path, host.pid, "finished")
    left = SimpleNamespace(open=0, left_at=clock.now)
    assert not end.is_over(left)
    clock.now += LINGER_S + 1
    assert end.is_over(left)


def test_a_host_that_was_killed_ends_it(end, host):
    host.kill()
    host.wait()
    assert end.is_over(NOBODY)


def test_a_run_that_another_host_goes_on_with_has_its_own(end, tmp_path):
    told(tmp_path, os.getpid(), None)
    assert end.is_over(NOBODY)
