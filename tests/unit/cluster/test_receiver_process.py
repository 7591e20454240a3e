"""A receiver is started again when it ends, and drains however the process that looks after it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from asys_bench.cluster import pool_actors
from asys_bench.cluster.receiver_process import HUNG_S, ReceiverProcess, State
from asys_bench.system.liveness import is_running
from asys_bench.system.process import start_time
from tests.conformance.support import eventually

STAND_IN = Path(__file__).with_name("stand_in_receiver.py")
ADDRESS = "tcp://127.0.0.1:7001"


def is_alive(pid: int) -> bool:
    try:
        return is_running(pid, start_time(pid))
    except (OSError, ValueError):
        return False


@pytest.fixture
def keep(tmp_path):
    kept = []

    def make(behaviour: str = "listen", **more) -> ReceiverProcess:
        command = [sys.executable, "-P", str(STAND_IN), "--status", str(tmp_path / "status.json")]
        more = {"first_pause_s": 0.05, **more}
        kept.append(
            ReceiverProcess(
                command, tmp_path / "pool" / "one.log", tmp_path / "status.json",
                environment={**os.environ, "BEHAVIOUR": behaviour}, **more,
            )
        )  # fmt: skip
        return kept[-1]

    yield make
    for one in kept:
        one.stop(10.0)


def status(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "status.json").read_text())


def listens(one: ReceiverProcess) -> bool:
    return one.state().state is State.LISTENING


def test_it_listens_and_leaves_in_order_when_it_is_asked_to(keep, tmp_path):
    one = keep()
    eventually(lambda: listens(one), "it listens")
    state = one.state()
    assert (state.address, state.starts, state.code) == (ADDRESS, 1, None)
    assert state.pid == status(tmp_path)["pid"]
    assert one.stop(60.0)
    after = one.state()
    assert (after.state, after.code, after.pid, after.said) == (State.STOPPED, 0, 0, "drained")
    assert status(tmp_path)["left"] is True


def test_one_that_is_killed_is_started_again(keep, tmp_path):
    one = keep()
    for start in (1, 2, 3):
        eventually(lambda start=start: listens(one) and one.state().starts == start, "a new start")
        eventually(lambda: status(tmp_path)["pid"] == one.state().pid != 0, "its own file")
        os.kill(one.state().pid, signal.SIGKILL)
    eventually(lambda: listens(one) and one.state().starts == 4, "a new start")
    assert one.state().code == -signal.SIGKILL


def test_one_that_cannot_start_is_tried_again_and_says_why(keep):
    one = keep("die")
    eventually(lambda: one.state().starts >= 3, "a third start")
    eventually(lambda: one.state().said == "no such thing", "the reason")
    assert one.state().code == 3
    assert one.state().address == ""
    assert one.stop(60.0)


def test_one_that_left_of_its_own_accord_is_not_started_again(keep):
    one = keep("idle")
    eventually(lambda: one.state().state is State.ENDED, "its end")
    assert (one.state().starts, one.state().code) == (1, 0)
    assert one.stop(60.0)
    assert one.state().state is State.ENDED


def test_one_that_hangs_is_killed_and_started_again(keep):
    one = keep("hang", hung_s=0.5)
    eventually(lambda: one.state().starts >= 2, "a second start")
    assert one.state().code == -signal.SIGKILL


def test_one_that_is_stopped_by_a_signal_hangs_too(keep, tmp_path):
    one = keep(hung_s=5.0)
    eventually(lambda: listens(one), "it listens")
    os.kill(one.state().pid, signal.SIGSTOP)
    eventually(lambda: one.state().starts >= 2 and listens(one), "a second one listens")


@pytest.mark.parametrize(("startup_s", "drain_s"), [(1000.0, 1.0), (1.0, 1000.0)])
def test_one_of_a_pool_that_starts_its_workers_or_drains_is_not_killed(
    tmp_path, monkeypatch, startup_s, drain_s
):
    """A hundredth of its time: HUNG_S is less than the stand-in is quiet for, both limits are more."""

    def fast(*args, hung_s=HUNG_S, **more):
        return ReceiverProcess(*args, hung_s=hung_s / 100, **more)

    address = SimpleNamespace(get_node_ip_address=lambda: "127.0.0.1")
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(util=address))
    monkeypatch.setitem(sys.modules, "ray.util", address)
    monkeypatch.setattr(pool_actors, "ReceiverProcess", fast)
    monkeypatch.setenv("BEHAVIOUR", "busy")
    path = tmp_path / "p.all" / "cluster" / "receiver.json"
    spec = {
        "run_dir": str(tmp_path), "config": "", "keys": "", "book": str(tmp_path / "book"), "cwd": "",
        "command": [sys.executable, "-P", str(STAND_IN), "--status", str(path)], "idle_ttl_s": None,
        "groups": {"all": {"hooks": ["*"]}}, "startup_s": startup_s, "drain_s": drain_s,
    }  # fmt: skip
    one = pool_actors._process_of(spec, "all", "p.all", tmp_path / "p.all")
    try:
        eventually(
            lambda: path.exists() and json.loads(path.read_text())["connections"],
            "a second account",
        )
        assert one.stop(60.0)
    finally:
        one.stop(0.0)
    state = one.state()
    assert (state.state, state.starts, state.code) == (State.STOPPED, 1, 0)
    assert json.loads(path.read_text())["left"] is True


def test_one_that_does_not_leave_is_killed(keep):
    one = keep()
    eventually(lambda: listens(one), "it listens")
    pid = one.state().pid
    os.kill(pid, signal.SIGSTOP)
    assert not one.stop(0.3)
    eventually(lambda: not is_alive(pid), "its end")
    assert one.state().state is State.STOPPED


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_drains_and_leaves_when_its_keeper_dies_with_all_of_its_children(tmp_path, number):
    """As Ray ends a worker: its direct children are killed with it."""
    text = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from asys_bench.cluster.receiver_process import ReceiverProcess\n"
        f"status = Path({str(tmp_path / 'status.json')!r})\n"
        f"command = [sys.executable, '-P', {str(STAND_IN)!r}, '--status', str(status)]\n"
        f"ReceiverProcess(command, Path({str(tmp_path / 'one.log')!r}), status)\n"
        "time.sleep(60)\n"
    )
    keeper = subprocess.Popen([sys.executable, "-c", text])
    try:
        eventually((tmp_path / "status.json").exists, "its start")
        pid = status(tmp_path)["pid"]
        shell = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        assert shell != keeper.pid
    finally:
        keeper.send_signal(number)
    os.kill(shell, signal.SIGKILL)
    keeper.wait(60)
    eventually(lambda: not is_alive(pid), "its end")
    eventually(lambda: status(tmp_path).get("left"), "its last account")
