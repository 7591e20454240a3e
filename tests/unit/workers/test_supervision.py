"""Who watches the watchers: a watchdog or a fork server that dies or stops is replaced, and whatever
they leave behind is ended with the run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from asys_bench.config import config_from_data
from asys_bench.contracts.stats import SlotField, WorkerState
from asys_bench.run.run_dir import RunDir
from asys_bench.run.session import ObservationSession
from asys_bench.system.liveness import is_stopped
from asys_bench.system.process import start_time
from asys_bench.workers.supervisor import Supervisor
from tests.conformance.support import eventually

ALONE = {"worker_cpu": "idle", "pinning": "auto"}


def open_session(tmp_path, module, resources=ALONE, **watchdog):
    config = config_from_data(
        {
            "host": {"kind": "ppo"},
            "run": {"dir": str(tmp_path), "name": "watched", "drain_timeout_s": 60},
            "hooks": [{"match": "0"}],
            "sinks": {"archive": {"kind": "archiver"}, "trainer": None},
            "resources": resources,
            "watchdog": {"tick_s": 0.05, "backoff_initial_s": 0.05, **watchdog},
        }
    )
    return ObservationSession(config, module, RunDir.create(tmp_path, "watched"))


def processes_of(session):
    """pid -> command line of all that the run's watchdog has started, itself included."""
    groups = session._supervisor._groups
    found = {}
    for pid in groups.members():
        try:
            found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
    return found


def fork_server_of(session, besides=()):
    names = {session.page.slot(name).get(SlotField.PID) for name, _ in session.page.slots()}
    for pid, command in processes_of(session).items():
        if b"multiprocessing.forkserver" in command and pid not in {*names, *besides}:
            return pid
    return None


@pytest.mark.rest
def test_whoever_dies_stops_or_is_outdated_is_replaced_until_the_budget_is_used_up(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(8, 16))
    session = open_session(tmp_path, module, heartbeat_timeout_s=3.0, restart_limit=2)
    try:
        session.start()
        watchdog, archive = session.page.slot("watchdog"), session.page.slot("archive-0")
        first, worker = watchdog.get(SlotField.PID), archive.get(SlotField.PID)
        server = fork_server_of(session)
        gives_way = os.getpriority(os.PRIO_PROCESS, 0) + 5
        assert os.getpriority(os.PRIO_PROCESS, server) == gives_way, "its imports are not urgent"
        assert os.getpriority(os.PRIO_PROCESS, worker) == gives_way, "once, not twice"
        assert os.sched_getscheduler(server) == os.SCHED_BATCH, "a restart is not to wait for hours"
        assert os.sched_getscheduler(worker) == os.SCHED_IDLE
        os.kill(server, signal.SIGSTOP)
        os.kill(first, signal.SIGSTOP)
        eventually(
            lambda: watchdog.get(SlotField.PID) != first and watchdog.state is WorkerState.READY,
            "another watchdog",
        )
        assert archive.get(SlotField.PID) == worker, "a living worker is adopted"
        assert not start_time(server) or not is_stopped(server), "its fork server went with it"
        assert watchdog.get(SlotField.RESTARTS) == 1

        eventually(lambda: fork_server_of(session, {server}), "its own fork server")
        second = fork_server_of(session, {server})
        os.kill(second, signal.SIGKILL)
        os.kill(worker, signal.SIGKILL)
        eventually(
            lambda: archive.get(SlotField.PID) != worker and archive.state is WorkerState.READY,
            "another worker",
        )

        worker = archive.get(SlotField.PID)
        archive.set(SlotField.LAUNCH, archive.get(SlotField.LAUNCH) + 1)  # given to somebody else
        eventually(lambda: archive.get(SlotField.PID) != worker, "the outdated worker's leaving")
        assert archive.get(SlotField.EXIT_CODE) == 76
        eventually(lambda: archive.state is WorkerState.READY, "its successor")
        for _ in range(50):
            module(torch.randn(4, 8))
            session.clock.step()
        eventually(lambda: session.bus.account().group("archive").delivered == 50, "delivery")
        started = processes_of(session)
        for pid, command in started.items():
            if b"resource_tracker" in command:
                os.kill(pid, signal.SIGSTOP)  # it would stay for ever
        deaths = 0
        while watchdog.state is not WorkerState.QUARANTINED:
            process = session._supervisor._watchdog
            if process is None:  # the next one is about to be started
                time.sleep(0.01)
                continue
            process.kill()
            deaths += 1
            eventually(
                lambda process=process: (
                    session._supervisor._watchdog is not process
                    or watchdog.state is WorkerState.QUARANTINED
                ),
                "what comes of a dead watchdog",
            )
        module(torch.randn(4, 8))
        end = session.stop()
    finally:
        session.abort()
        session.close()
    assert deaths == 2
    assert end.orderly, "workers drain by themselves"
    assert end.watchdog_restarts == 2
    assert end.account.group("archive").delivered == 51
    assert end.account.imbalance(end.account.group("archive")) == 0
    assert len(started) >= 3
    assert processes_of(session) == {}


def test_a_new_watchdog_is_on_its_cpus_before_it_has_imported_anything(tmp_path):
    """Else the host's CPU, whose mask it inherits, would do its imports at every restart."""
    cpu = max(os.sched_getaffinity(0))
    session = open_session(tmp_path, torch.nn.Sequential(torch.nn.Linear(8, 16)))
    launch = replace(session._supervisor._launch, placements={"watchdog": {"cpus": str(cpu)}})
    supervisor = Supervisor(launch, session.page, session.config.watchdog)
    try:
        supervisor.start()
        assert os.sched_getaffinity(supervisor._watchdog.pid) == {cpu}
        assert session.page.slot("watchdog").get(SlotField.PID) == 0
    finally:
        supervisor.end()
        session.close()


@pytest.mark.rest
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU cannot be kept clear")
def test_workers_that_nobody_has_pinned_keep_off_a_busy_hosts_cpu_until_it_is_done(tmp_path):
    session = open_session(tmp_path, torch.nn.Sequential(torch.nn.Linear(8, 16)), {})
    everywhere, idle = os.sched_getaffinity(0), threading.Event()

    def spin():
        while not idle.is_set():
            pass

    busy = threading.Thread(target=spin)
    try:
        session.start()
        pids = [session.page.slot(name).get(SlotField.PID) for name in ("watchdog", "archive-0")]

        def cpus():
            return {len(os.sched_getaffinity(pid)) for pid in pids}

        assert cpus() == {len(everywhere)}
        busy.start()
        eventually(lambda: cpus() == {len(everywhere) - 1}, "keeping off")
        assert os.sched_getaffinity(0) == everywhere, "the host goes where it likes"
        idle.set()
        eventually(lambda: cpus() == {len(everywhere)}, "coming back")
    finally:
        idle.set()
        session.stop()
        session.close()


def test_a_watchdog_whose_host_was_killed_meanwhile_leaves_with_one_line(tmp_path):
    """As the kernel does to a host that does not fit in its memory."""
    session = open_session(tmp_path, torch.nn.Sequential(torch.nn.Linear(8, 16)))
    host = subprocess.Popen(["true"])
    host.wait()
    (session.run_dir.path / "logs").mkdir()
    launch = replace(session._supervisor._launch, host_pid=host.pid)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "asys_bench.workers.watchdog"],
            input=json.dumps(launch.to_dict()),
            text=True,
            pass_fds=launch.fds,
            timeout=240,
            check=False,
        )
    finally:
        session.close()
    assert done.returncode == 0
    log = (session.run_dir.path / "logs" / "watchdog.log").read_text()
    assert f"the host (pid {host.pid}) was gone before its watchdog was ready" in log
    assert "Traceback" not in log


@pytest.mark.parametrize("word", ["", "wrong"])
def test_a_process_without_the_runs_mark_is_not_the_runs(word):
    from asys_bench.workers.process_group import ProcessGroups

    groups = ProcessGroups(word)
    groups.add(os.getsid(0))
    assert groups.members() == []
    assert groups.end(time.monotonic() + 60.0) == []


def test_the_folder_of_a_watchdog_killed_while_it_started_a_fork_server_is_removed(
    tmp_path, monkeypatch
):
    from asys_bench.workers.fork_server import PARENT_VARIABLE, ForkServer
    from asys_bench.workers.process_group import VARIABLE, ProcessGroups

    monkeypatch.setenv(PARENT_VARIABLE, "0")  # what ForkServer sets is taken back after the test
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine, other = ProcessGroups("run"), ProcessGroups("run")
    made = {}
    for groups in (mine, other):
        monkeypatch.setenv(VARIABLE, groups.environment[VARIABLE])
        made[groups] = Path(ForkServer((), 5.0)._new_folder())
    assert sorted(tmp_path.iterdir()) == sorted(made.values())
    again = Path(ForkServer((), 5.0)._new_folder())  # of the other's next watchdog
    assert sorted(tmp_path.iterdir()) == sorted([made[mine], again])
    mine.remove_folders(str(tmp_path))
    assert list(tmp_path.iterdir()) == [again]


def test_folders_in_a_place_that_is_not_to_be_read_are_left_and_nothing_is_raised(
    tmp_path, monkeypatch
):
    from asys_bench.workers import process_group

    mine = tmp_path / f"{process_group.folder_prefix('mark')}x"
    mine.mkdir()
    monkeypatch.setattr(process_group.tempfile, "gettempdir", lambda: str(tmp_path))
    no_folder = tmp_path / "run"
    no_folder.touch()  # as good as one that belongs to another user: listing it is an OSError
    process_group.remove_folders("mark", str(no_folder))
    assert not mine.exists()
