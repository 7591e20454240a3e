"""Faults: what each does to its victim, and that one which cannot be had is never a pass."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import cast

import pytest
from pydantic import ValidationError

from asys_bench.harness.faults import disk, signals
from asys_bench.harness.faults.disk import NoDescriptors
from asys_bench.harness.faults.fault import FAULT_NAMES, ChaosOptions, Stage, cannot_mount
from asys_bench.harness.faults.observed import MARK, ObservedRun
from asys_bench.harness.faults.signals import FAULTS, AnySignal, ClockStep, Freeze, Kill, Slow
from asys_bench.harness.judging.judge import CaseRecord, judge
from asys_bench.harness.planning.suite_file import load_suite
from asys_bench.harness.plugins import metrics_of, scenario_plugin
from asys_bench.harness.results.result import Subject
from asys_bench.harness.results.result_run import CaseStatus, Verdict
from asys_bench.system.liveness import is_stopped
from tests.conformance.support import eventually

SUITE = Path(__file__).parents[3] / "suites/chaos.yaml"
needs_compiler = pytest.mark.skipif(
    ClockStep.unavailable(ChaosOptions(fault="clock_step")) is not None, reason="no C compiler"
)
ASKS_CLOCKS = """\
import ctypes, numpy, sys, time
libc, cells = ctypes.CDLL(None), (ctypes.c_long * 2)()
print("up", flush=True)
for line in sys.stdin:
    libc.gettimeofday(cells, None)
    libc.time.restype = ctypes.c_long
    clocks = cells[0] + cells[1] / 1e6, libc.time(None), time.time_ns() / 1e9
    by_numpy = numpy.datetime64("now", "s").astype(float)
    print(time.time(), time.monotonic(), by_numpy, *clocks, flush=True)
"""
SLEEPER = "import time; print('up', flush=True); time.sleep(60)"
PARENT = (
    "import subprocess, sys, time\n"
    "child = 'import os, time; print(os.getpid(), flush=True); time.sleep(60)'\n"
    "subprocess.Popen([sys.executable, '-c', child])\n"
    "time.sleep(60)\n"
)
"""Prints its child's pid."""


class Victim(ObservedRun):
    """A sleeping process in place of a run; `pid` of any slot is its own."""

    def __init__(self, program: str = SLEEPER, **environment: str) -> None:
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, MARK: "victim", **environment},
        )
        super().__init__(process, "victim", Path("/nowhere"))
        assert process.stdout is not None
        self.line = process.stdout.readline().decode().strip()

    def pid(self, name: str) -> int:
        return self.process.pid

    def close(self) -> None:
        super().close()
        self.process.stdout.close()


def test_the_table_and_the_options_name_the_same_faults():
    assert tuple(FAULTS) == FAULT_NAMES
    with pytest.raises(ValidationError, match="'kill'"):
        ChaosOptions(fault="kil")


def test_a_slowed_process_is_stopped_and_goes_on_in_turn():
    victim = Victim()
    fault = Slow(ChaosOptions(fault="slow"), 0)
    fault.inject(victim)
    seen = set()
    deadline = time.monotonic() + 60
    while seen != {True, False} and time.monotonic() < deadline:
        seen.add(is_stopped(victim.process.pid))
        time.sleep(0.001)
    fault.lift(victim)
    assert seen == {True, False}
    time.sleep(0.05)
    assert not is_stopped(victim.process.pid)
    victim.close()


def test_a_frozen_run_stands_still_until_it_thaws_and_its_host_goes_on():
    victim = Victim(PARENT)
    child = int(victim.line)
    fault = Freeze(ChaosOptions(fault="freeze"), 0)
    fault.inject(victim)
    eventually(lambda: is_stopped(child), "the child stands still")
    assert not is_stopped(victim.process.pid)
    fault.lift(victim)
    eventually(lambda: not is_stopped(child), "the child goes on")
    assert victim.sent == 2
    victim.process.kill()
    victim.process.wait()
    victim.wait_gone(0.0)
    victim.close()


class Marked:
    """A run of five processes that remembers what is sent to them."""

    def __init__(self):
        self.sent = []

    def others(self):
        return []

    def processes(self):
        return [1, 2, 3, 4, 5]

    def send_to(self, pid, number):
        self.sent.append((pid, number))


def struck(fault, seed, strikes=200):
    storm = fault(ChaosOptions(fault=fault.name), seed)
    found = []
    for _ in range(strikes):
        run = Marked()
        storm.inject(run)
        found.append(run.sent)
    return found


def test_any_signal_goes_to_one_to_three_processes_and_again_alike_from_the_same_seed():
    signals = struck(AnySignal, 0)
    assert {len({pid for pid, _ in strike}) for strike in signals} == {1, 2, 3}
    assert all(len(strike) == len({pid for pid, _ in strike}) for strike in signals)
    assert {number for strike in signals for _, number in strike} == set(AnySignal.signals)
    assert struck(AnySignal, 0) == signals
    assert struck(AnySignal, 1) != signals


def test_without_descriptors_opening_fails_until_the_limit_is_back():
    victim = Victim(
        "import errno, sys\n"
        "print('up', flush=True)\n"
        "for line in sys.stdin:\n"
        "    try:\n"
        "        open('/dev/null').close()\n"
        "        print('opened', flush=True)\n"
        "    except OSError as error:\n"
        "        print(errno.errorcode[error.errno], flush=True)\n"
    )

    def ask() -> str:
        victim.process.stdin.write(b"?\n")
        victim.process.stdin.flush()
        return victim.process.stdout.readline().decode().strip()

    fault = NoDescriptors(ChaosOptions(fault="emfile"), 0)
    assert ask() == "opened"
    fault.inject(victim)
    assert ask() == "EMFILE"
    fault.lift(victim)
    assert ask() == "opened"
    victim.close()


@needs_compiler
def test_the_wall_clock_of_the_run_steps_in_c_as_well_and_its_monotonic_clock_does_not(tmp_path):
    stage = Stage(tmp_path)
    steps = (-5000.25, 6.3e8, -2e9)
    fault = ClockStep(ChaosOptions(fault="clock_step", clock_s=steps), 0)
    fault.prepare(stage)
    victim = Victim(ASKS_CLOCKS, **stage.environment)

    def ask() -> tuple[float, ...]:
        victim.process.stdin.write(b"?\n")
        victim.process.stdin.flush()
        return tuple(map(float, victim.process.stdout.readline().split()))

    began, monotonic_s, *others = ask()
    assert max(others) - began < 60
    for added_s in steps:
        fault.inject(victim)
        after, now_s, *others = ask()
        assert abs(after - began - added_s) < 60
        assert 0 <= now_s - monotonic_s < 60
        assert all(abs(other - after) < 30 for other in others), "numpy, gettimeofday and time too"
    assert after < 0, "before 1970"
    victim.close()


def test_without_a_compiler_the_clock_is_not_stepped_and_it_is_said_why(monkeypatch):
    monkeypatch.setattr(signals, "COMPILERS", ())
    assert "C compiler" in ClockStep.unavailable(ChaosOptions(fault="clock_step"))


def test_anyone_is_one_process_of_the_run_and_never_the_host():
    victim = Victim(
        "import subprocess, sys, time\n"
        "child = 'import os, time; print(os.getpid(), flush=True); time.sleep(60)'\n"
        "subprocess.Popen([sys.executable, '-c', child])\n"
        "time.sleep(60)\n"
    )
    fault = Kill(ChaosOptions(fault="kill", worker="anyone"), 0)
    fault.inject(victim)
    deadline = time.monotonic() + 60
    while victim.processes() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert victim.processes() == []
    fault.inject(victim)  # nobody is left
    assert victim.process.poll() is None
    victim.close()


def test_what_a_run_leaves_in_its_own_temporary_folder_is_left_behind(tmp_path):
    stage = Stage(tmp_path)
    assert stage.left_behind(0.0) == []
    (Path(stage.environment["TMPDIR"]) / "pymp-1").mkdir()
    assert stage.left_behind(0.0) == ["pymp-1"]


def test_every_process_of_a_run_is_found_by_its_mark_and_ended():
    victim = Victim(PARENT)
    child = int(victim.line)
    assert victim.processes() == [child]
    os.kill(child, signal.SIGSTOP)
    victim.process.kill()
    victim.process.wait()
    assert victim.wait_gone(0.1) == [child]
    assert victim.processes() == []
    victim.close()


def test_a_fault_that_this_machine_cannot_have_is_named_and_is_no_pass(monkeypatch):
    monkeypatch.setattr(disk, "cannot_mount", lambda: "it takes CAP_SYS_ADMIN: run it as root")
    monkeypatch.setattr(signals, "_memory_cgroup", lambda: None)
    monkeypatch.setattr(signals, "_compiler", lambda: "cc")
    loaded = load_suite(SUITE)
    skipped = {c.id: c.unavailable for c in loaded.contenders if c.unavailable}
    assert set(skipped) == {"fault.disk_full", "fault.shm_full", "fault.oom.trainer"}
    assert "run it as root" in skipped["fault.disk_full"]
    assert "cgroup" in skipped["fault.oom.trainer"]
    contender = next(c for c in loaded.contenders if c.id == "fault.disk_full")
    record = CaseRecord(
        contender,
        metrics_of(scenario_plugin("chaos")),
        cast(Subject, Subject.model_construct()),
    )
    (case,) = judge({contender.id: record}, {}, 0.95)
    assert case.status is CaseStatus.UNAVAILABLE
    assert {target.verdict for target in case.targets} == {Verdict.INCONCLUSIVE}
    assert "cannot run here" in case.targets[0].reason


def test_who_may_not_mount_is_told_what_it_takes(monkeypatch):
    assert cannot_mount() is None or "CAP_SYS_ADMIN" in cannot_mount()
    monkeypatch.setattr("builtins.open", _no_file)
    assert "--cap-add" in cannot_mount()


def _no_file(*args, **kwargs):
    raise FileNotFoundError


def test_a_run_that_cannot_be_attached_to_is_not_taken_for_one_without_hooks(tmp_path):
    """Not even where its folder is called what the message about such a run says."""
    runs = tmp_path / "observes no hook"
    (runs / "r").mkdir(parents=True)
    run = ObservedRun(None, "mark", runs)
    document = {"schema": "asys.run/1", "run_id": "r", "hooks": [], "host_pid": os.getpid()}
    for bus, expected in (({}, False), (None, True)):
        (runs / "r" / "run.json").write_text(json.dumps(document | {"bus": bus}))
        assert run._try_attach() is expected
