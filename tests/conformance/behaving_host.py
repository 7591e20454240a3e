"""A host that owns its process and does one unexpected thing with it, for test_host_behaviour.py:

    python behaving_host.py BEHAVIOUR BUS VIA FOLDER      # via observe() or a callback
    BEHAVIOUR BUS script FOLDER                           # the arguments as asys-run's host `script`

What became of it is written to FOLDER/outcome.json, by the process's last act.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch

OWN_EXIT_CODE = 7
OWN_NUMBERS = range(3, 700)
"""A host that opens files takes the lowest numbers; these reach past where ours begin."""
PATIENCE_S = 180.0


class Host:
    """One training; `behave` in the middle of it."""

    def __init__(self, behaviour, bus, via, folder):
        self.behaviour, self.bus, self.via, self.folder = behaviour, bus, via, Path(folder)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01)
        self.observation = None
        self.own = {}
        self.outcome = {"raised": None, "replaced": []}

    def run(self):
        if "clock_ahead" in self.behaviour:
            move_children_in_time(3 * 86400)
        if "reaps" in self.behaviour:
            threading.Thread(target=reap_everybody, daemon=True).start()
        if self.via == "observe":
            import asys_bench

            self.observation = asys_bench.observe(self.model, **self.settings)
        elif self.via == "callback":
            from asys_bench.callbacks.observed_training import ObservedTraining

            self.callback = ObservedTraining(None, "step", "all", self.settings)
            self.callback.start(self, self.model, 0)
            self.observation = self.callback.observation
        self.train(50)
        if self.observation is not None:
            from open_to_others import open_to_others, session_of

            processes = [os.getpid(), *session_of(self.pid("watchdog"))]
            self.outcome["swept"] = len(processes)
            self.outcome["open to others"] = open_to_others(processes, [self.folder])
        self.behave()
        self.train(50)
        self.outcome["restarts"] = self.restarts()
        began = time.monotonic()
        try:
            if self.via == "callback":
                self.callback.close()
            elif self.via == "observe":
                self.observation.close()
        except Exception as error:  # noqa: BLE001 - the test asserts that there is none
            self.outcome["raised"] = repr(error)
        self.outcome["close_s"] = time.monotonic() - began

    def restarts(self):
        from asys_bench.contracts.stats import SlotField

        if self.observation is None:
            return {}
        slots = self.observation.page.slots()
        return {name: slot.get(SlotField.RESTARTS) for name, slot in slots if name != "host"}

    @property
    def settings(self):
        return {
            "hooks": ["0"],
            "bus": {"backend": self.bus},
            "run": {"dir": str(self.folder / "runs"), "drain_timeout_s": 10.0},
            "sinks": {"trainer": None, "archive": {"kind": "archiver"}},
            "monitors": {},
            "watchdog": {
                "tick_s": 0.05,
                "backoff_initial_s": 0.05,
                "startup_timeout_s": 180.0,  # a busy machine takes over a minute for the imports
                "heartbeat_timeout_s": 4.0 if "clock" in self.behaviour else 10.0,
            },
        }

    def train(self, steps):
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.model(torch.randn(4, 8)).square().mean().backward()
            self.optimizer.step()
            time.sleep(0.001)

    def behave(self):
        if "removes_cwd" in self.behaviour:
            gone = self.folder / "gone"
            gone.mkdir()
            os.chdir(gone)
            gone.rmdir()
        if "removes_tmp" in self.behaviour:
            shutil.rmtree(os.environ["TMPDIR"])
        if "closes" in self.behaviour:
            os.closerange(3, 4096)
            for number in OWN_NUMBERS:
                fd = os.open(self.folder / f"own-{number % 8}", os.O_RDWR | os.O_CREAT, 0o600)
                if fd != number:
                    os.dup2(fd, number, inheritable=False)
                    os.close(fd)
                self.own[number] = identity(number)
        if "clock_behind_later" in self.behaviour:
            move_children_in_time(-min(3600, int(time.monotonic()) // 2))
        if "kills_watchdog" in self.behaviour:
            if "closes" in self.behaviour:
                time.sleep(1.5)  # the supervisor looks after its descriptors every half second
            self.kill("watchdog", self.pid("watchdog"))
        if "kills_fork_server" in self.behaviour:
            for pid in children_of(self.pid("watchdog"), b"forkserver"):
                os.kill(pid, signal.SIGKILL)
        if "kills_worker" in self.behaviour:
            self.kill("archive-0", self.pid("archive-0"))
        if "read_by_child" in self.behaviour:
            self.read_by_child()
        if "stops_worker" in self.behaviour:
            began = time.monotonic()
            self.kill("archive-0", self.pid("archive-0"), signal.SIGSTOP)
            self.outcome["found_s"] = time.monotonic() - began
        if "setuid" in self.behaviour:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        if "chroot" in self.behaviour:
            (self.folder / "root").mkdir()
            os.chroot(self.folder / "root")
            os.chdir("/")

    def pid(self, name):
        from asys_bench.contracts.stats import SlotField

        return self.observation.page.slot(name).get(SlotField.PID)

    def read_by_child(self):
        """Somebody else reads the run, from where this process's children are."""
        run_dir = str(next((self.folder / "runs").glob("*")))
        reader = subprocess.Popen(
            [sys.executable, "-P", "-c", READER, run_dir], stdout=subprocess.PIPE, text=True
        )
        while reader.poll() is None:
            self.train(5)
        self.outcome["read"] = json.loads(reader.communicate()[0])

    def kill(self, name, pid, number=signal.SIGKILL):
        """And train on until there is another."""
        from asys_bench.contracts.stats import WorkerState

        os.kill(pid, number)
        slot = self.observation.page.slot(name)
        deadline = time.monotonic() + PATIENCE_S
        while self.pid(name) == pid or slot.state is not WorkerState.READY:
            if time.monotonic() > deadline:
                return
            self.train(5)
        self.outcome["replaced"].append(name)

    def write_outcome(self):
        outcome = self.outcome
        outcome["lost"] = [n for n, was in self.own.items() if identity(n) != was]
        account = self.observation.account if self.observation is not None else None
        if account is not None:
            outcome["produced"], outcome["dropped"] = (
                account.produced,
                sum(account.dropped.values()),
            )
            outcome["delivered"] = account.group("archive").delivered
            outcome["imbalance"] = account.imbalance(account.group("archive"))
        path = Path("/" if "chroot" in self.behaviour else self.folder) / "outcome.json"
        if "setuid" in self.behaviour:
            print(json.dumps(outcome), flush=True)
        else:
            path.write_text(json.dumps(outcome))


READER = """
import json, sys, time
from rich.console import Console
from asys_bench.rundir.attach import attach_run
from asys_bench.cli.commands.run_top import TopView
from asys_bench.contracts.monitor import heartbeats
from asys_bench.rundir.subscribe import subscribe
with subscribe(sys.argv[1]) as samples:
    sample = samples.get(120.0)
with attach_run(__import__("pathlib").Path(sys.argv[1])) as run:
    view = TopView(run)
    view.frame(120)
    heartbeats(run.page)
    time.sleep(0.5)
    with open("/dev/null", "w") as nowhere:
        console = Console(file=nowhere, record=True, width=120)
        console.print(view.frame(120))
    ages = heartbeats(run.page)
    print(json.dumps({"hook": sample.hook, "ages": ages, "top": console.export_text()}))
"""


def move_children_in_time(seconds):
    script = Path(__file__).parents[1] / "fixtures/in_time_namespace.py"
    runpy.run_path(str(script))["move_children_in_time"](seconds)


def identity(fd):
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def reap_everybody():
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            time.sleep(0.001)


def children_of(parent, word):
    found = []
    for name in os.listdir("/proc"):
        try:
            fields = Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()
            if int(fields[1]) == parent and word in Path(f"/proc/{name}/cmdline").read_bytes():
                found.append(int(name))
        except (OSError, IndexError):
            continue
    return found


if __name__ == "__main__":
    host = Host(*sys.argv[1:])
    atexit.register(host.write_outcome)
    host.run()
    sys.exit(0 if host.via == "script" else OWN_EXIT_CODE)
