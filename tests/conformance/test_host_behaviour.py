"""The host owns its process: whatever it does with it, it ends with its own exit code, nothing of ours
raises or hangs in it, no descriptor of its own is touched, packets are accounted for, and nothing stays.

Descriptors differ by bus, so that behaviour runs on each one that workers can attach to, a new one as
well, in a host that waits for every child and has lost its working directory. What dies and is replaced,
user and root meet the supervisor, which all share: those run on one bus.
What a callback or `asys-run` adds is the way to `close`: descriptors and working directory once each.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from asys_bench.contracts.bus import BusPlugin
from asys_bench.contracts.run_files import HOST_LOCK, READERS_DIR, WORKERS_LOCK
from asys_bench.system.liveness import all_pids, has_in_environment, is_running
from asys_bench.system.process import start_time

from . import behaving_host

HOST = Path(behaving_host.__file__)
ONE_BUS = "cpp_spmc"
DEADLINE_S = 10.0 + 1.0 + 5.0 + 30.0
"""`run.drain_timeout_s`, what `drain` adds, `Supervisor.end`, and a loaded machine."""
PATIENCE_S = 560.0
LEAVE_S = 60.0
pytestmark = pytest.mark.timeout(600)
needs_time_namespace = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/proc/self/ns/time"),
    reason="only root makes time namespaces, where there are any",
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root changes user and root")


class Ended:
    """A host that has ended, and what it left."""

    def __init__(self, behaviour, bus, via, folder, *, ignore_sigchld=False):
        (folder / "tmp").mkdir()
        mark = f"ASYS_TEST_MARK={uuid.uuid4().hex}"
        name, _, value = mark.partition("=")
        shm = set(os.listdir("/dev/shm"))
        words = [behaviour, bus, via, str(folder)]
        command = [sys.executable, str(HOST), *words]
        if via == "script":
            (folder / "run.yaml").write_text(
                RUN.format(host=HOST, words=json.dumps(words), bus=bus, runs=folder)
            )
            command = [
                sys.executable,
                "-P",
                "-m",
                "asys_bench.cli.run",
                "--config",
                str(folder / "run.yaml"),
            ]
        environment = {
            **os.environ,
            name: value,
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(folder / "tmp"),
        }
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            env=environment,
            preexec_fn=ignore if ignore_sigchld else None,
            check=False,
        )
        self.code, self.said = done.returncode, done.stderr
        written = [*folder.glob("outcome.json"), *folder.glob("root/outcome.json")]
        text = written[0].read_text() if written else done.stdout.strip().rpartition("\n")[2]
        assert text.startswith("{"), (
            f"no outcome ({self.code}): {done.stdout[-2000:]}\n{self.said[-4000:]}"
        )
        self.outcome = json.loads(text)
        self.left = wait_for_none(mark)
        tmp = os.listdir(folder / "tmp") if (folder / "tmp").exists() else []
        self.files = sorted({*tmp, *(set(os.listdir("/dev/shm")) - shm)})
        hidden = {path.name for path in folder.glob("runs/*/.*")}
        self.files += sorted(hidden - {READERS_DIR})  # that one is a part of the run

    def check(self, code=behaving_host.OWN_EXIT_CODE):
        assert self.code == code, self.said[-4000:]
        assert self.outcome["raised"] is None
        assert self.outcome["lost"] == []
        assert self.outcome.get("open to others", []) == []
        assert self.outcome["close_s"] <= DEADLINE_S
        assert self.left == []
        own = [name for name in self.files if name.startswith(("asys-", "pymp-", "."))]
        assert set(own) <= {HOST_LOCK, WORKERS_LOCK}
        assert "Traceback" not in self.said
        assert self.outcome.get("imbalance", 0) == 0

    def check_all_delivered(self):
        assert self.outcome["produced"] >= 100
        assert self.outcome["delivered"] == self.outcome["produced"]


RUN = """\
extends: profile_consumer.yaml
run: {{dir: {runs}/runs, drain_timeout_s: 10.0}}
host: {{kind: script, options: {{script: {{path: {host}, args: {words}}}}}}}
hooks: [{{match: "0"}}]
bus: {{backend: {bus}}}
sinks: {{archive: {{kind: archiver}}, trainer: null}}
monitors: {{}}
watchdog: {{startup_timeout_s: 180.0}}
"""


def ignore():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def wait_for_none(mark):
    """Pids of what is there for longer than workers take to leave."""
    deadline = time.monotonic() + LEAVE_S
    while True:
        left = [
            pid
            for pid in all_pids()
            if has_in_environment(pid, mark) and is_running(pid, start_time(pid))
        ]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


@pytest.fixture
def plugin(any_plugin: BusPlugin) -> BusPlugin:
    """Each bus that a run's workers can attach to."""
    can = any_plugin.capabilities
    if not (can.cross_process and can.transports_payload):
        pytest.skip(f"{any_plugin.name}: no worker can attach to it")
    return any_plugin


@pytest.mark.rest
def test_a_host_that_closes_all_descriptors_and_reuses_their_numbers_keeps_its_own(
    plugin, tmp_path
):
    # The watchdog's copies are taken back, for the next one: that is the supervisor's, on any bus.
    kills = "+kills_watchdog" if plugin.name == ONE_BUS else ""
    behaviour = f"reaps+removes_cwd+closes{kills}"
    ended = Ended(behaviour, plugin.name, "observe", tmp_path)
    ended.check()
    if kills:
        assert ended.outcome["replaced"] == ["watchdog"]
    if plugin.name != "mp_queue":
        ended.check_all_delivered()
    else:  # its sockets are gone, and with them the way to the workers: said, refused and counted
        assert "closed the sockets of its mp_queue bus" in ended.said
        assert ended.outcome["delivered"] + ended.outcome["dropped"] <= ended.outcome["produced"]


@pytest.mark.rest
@pytest.mark.parametrize("via", ["callback", "script"])
def test_nor_does_it_lose_one_under_a_callback_or_asys_run(via, tmp_path):
    ended = Ended("closes+removes_cwd", ONE_BUS, via, tmp_path)
    ended.check(0 if via == "script" else behaving_host.OWN_EXIT_CODE)
    if via == "callback":
        ended.check_all_delivered()


@pytest.mark.rest
def test_with_sigchld_ignored_and_the_temporary_folder_removed_whoever_dies_is_replaced(tmp_path):
    behaviour = "removes_tmp+kills_fork_server+kills_worker+kills_watchdog"
    ended = Ended(behaviour, ONE_BUS, "observe", tmp_path, ignore_sigchld=True)
    ended.check()
    assert ended.outcome["replaced"] == ["watchdog", "archive-0"]
    ended.check_all_delivered()


@pytest.mark.rest
def test_a_thread_that_waits_for_every_child_and_a_removed_directory_stop_no_restart(tmp_path):
    ended = Ended("reaps+removes_cwd+kills_watchdog", ONE_BUS, "observe", tmp_path)
    ended.check()
    assert ended.outcome["replaced"] == ["watchdog"]
    ended.check_all_delivered()


@pytest.mark.rest
@needs_time_namespace
@pytest.mark.parametrize(
    ("behaviour", "bus", "restarts"),
    [
        ("clock_ahead+read_by_child+stops_worker", "cpp_spmc", {"watchdog": 0, "archive-0": 1}),
        (
            "clock_behind_later+kills_watchdog+stops_worker",
            "numba_ring",
            {"watchdog": 1, "archive-0": 1},
        ),
    ],
)
def test_on_another_clock_than_its_workers_nobody_is_called_dead_and_a_stopped_one_is_found(
    behaviour, bus, restarts, tmp_path
):
    ended = Ended(behaviour, bus, "observe", tmp_path)
    ended.check()
    assert ended.outcome["restarts"] == restarts, "whoever was struck, once, and nobody else"
    assert ended.outcome["found_s"] < 4.0 + DEADLINE_S
    ended.check_all_delivered()
    if "read_by_child" in behaviour:
        read = ended.outcome["read"]
        assert read["hook"] == "0"
        assert max(read["ages"].values()) < 30.0, "not three days"
        assert "archive-0" in read["top"]


@pytest.mark.rest
@needs_root
@pytest.mark.parametrize("behaviour", ["setuid", "chroot"])
def test_a_host_that_changes_its_user_or_root_closes_without_a_word_too_many(behaviour, tmp_path):
    tmp_path.chmod(0o755)
    ended = Ended(behaviour, ONE_BUS, "observe", tmp_path)
    ended.check()
    ended.check_all_delivered()
