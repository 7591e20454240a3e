"""How a round's process has ended, also where the kernel or a thread of the caller's waits for it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress

import pytest

from asys_bench.harness.measuring.child import await_end
from asys_bench.harness.measuring.launch import PADDING, ForkedProcess, FreshProcess
from asys_bench.harness.results.result_run import RoundStatus
from asys_bench.harness.round import RoundSpec

ROUND = """\
#!{python} -IS
import io, json, os, sys, time, zipfile
folder = json.load(sys.stdin)["folder"]
print("about to end", flush=True)
if {leaves}:
    zipfile.ZipFile(os.path.join(folder, "samples.npz"), "w").close()
    open(os.path.join(folder, "round.json"), "w").write(json.dumps(dict(faults=[])))
{ends}
"""
"""Stands for the interpreter, and so for the round that it would run."""
FAILS = "os.kill(os.getpid(), 11)"
FAILS_LATE = "sys.exit(3)"
HANGS = "time.sleep(600)"


SERVER = """\
#!{python} -IS
import io, json, os, sys, zipfile
for line in sys.stdin:
    folder = json.loads(json.loads(line)["spec"])["folder"]
    zipfile.ZipFile(os.path.join(folder, "samples.npz"), "w").close()
    told = dict(faults=[], server=os.getpid(), padding=len(os.environ["{padding}"]))
    open(os.path.join(folder, "round.json"), "w").write(json.dumps(told))
    print(json.dumps(dict(pid=1, code=0)), flush=True)
"""
"""Stands for the interpreter of a fork server."""


@pytest.fixture(params=["asks the kernel", "ignores SIGCHLD", "waits for every child"])
def caller(request):
    """What this process does about its children."""
    before = signal.getsignal(signal.SIGCHLD)
    stop = threading.Event()
    waiter = threading.Thread(target=wait_for_every_child, args=(stop,))
    if request.param == "ignores SIGCHLD":
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    elif request.param == "waits for every child":
        waiter.start()
    yield request.param
    stop.set()
    if waiter.ident:
        waiter.join()
    signal.signal(signal.SIGCHLD, before)


def wait_for_every_child(stop):
    while not stop.is_set():
        with suppress(ChildProcessError):
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
        time.sleep(0.0002)


@pytest.fixture
def run(tmp_path):
    def start(leaves, ends, timeout_s=240.0):
        python = tmp_path / "python"
        python.write_text(ROUND.format(python=sys.executable, leaves=leaves, ends=ends))
        python.chmod(0o700)
        spec = RoundSpec("", "s", None, None, [], {}, samples=1, seed=1, warmup_max_s=0)
        return FreshProcess(str(python)).run(spec, timeout_s)

    return start


def test_a_round_that_ends_well_is_ok(run, caller):
    end = run(True, "")
    assert (end.status, end.document) == (RoundStatus.OK, {"faults": []}), end


def test_a_round_that_crashes_has_crashed(run, caller):
    end = run(False, FAILS)
    assert end.status is RoundStatus.CRASHED
    assert "about to end" in end.log
    if caller == "asks the kernel":
        assert end.error == "ended by signal 11 (SIGSEGV)"
    else:
        assert "SIGSEGV" in end.error or "its exit code is not known" in end.error


def test_a_round_that_hangs_has_timed_out_and_is_gone(run, caller):
    end = run(True, HANGS, timeout_s=0.5)
    assert end.status is RoundStatus.TIMEOUT
    with pytest.raises(ProcessLookupError):
        os.killpg(end.pid, 0)


def test_a_round_that_fails_behind_its_result_has_crashed(run):
    end = run(True, FAILS_LATE)
    assert (end.status, end.error) == (RoundStatus.CRASHED, "exit code 3: about to end")


def test_what_is_left_of_its_group_ends_with_it(run):
    left = "pid = os.fork()\nif not pid: time.sleep(600)\nprint(pid, flush=True)"
    end = run(True, left)
    assert end.status is RoundStatus.OK
    pid = int(end.log.split()[-1])
    deadline = time.monotonic() + 60
    while os.path.exists(f"/proc/{pid}") and _state(pid) not in "ZX":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_rounds_until_a_close_share_a_server_and_those_after_it_have_another(tmp_path):
    python = tmp_path / "python"
    python.write_text(SERVER.format(python=sys.executable, padding=PADDING))
    python.chmod(0o700)
    launcher = ForkedProcess(str(python))

    def told(seed):
        spec = RoundSpec("", "s", None, None, [], {}, samples=1, seed=seed, warmup_max_s=0)
        end = launcher.run(spec, 60.0)
        assert end.status is RoundStatus.OK, end
        return end.document["server"], end.document["padding"]

    first, same = told(1), told(2)
    launcher.close()
    another = told(3)
    launcher.close()
    launcher.close()
    assert first == same
    assert another[0] != first[0]
    assert another[1] != first[1]
    assert not os.path.exists(f"/proc/{first[0]}")


def test_a_child_that_leads_no_group_is_ended_after_the_timeout():
    pid = os.fork()
    if not pid:
        time.sleep(600)
        os._exit(0)
    end = await_end(pid, 0.05)
    assert (end.pid, end.code, end.timed_out) == (pid, None, True)


def _state(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return "X"
