"""A Slurm of our own on this machine: a controller and two nodes, for as long as a test lasts."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sinfo", "scancel")
START_S = 60.0
CONF = """\
ClusterName=asys
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerType=sched/builtin
SelectType=select/linear
NodeName=n0 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8 State=UNKNOWN
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES State=UP
"""


class SlurmUnavailableError(RuntimeError):
    """Slurm cannot run here; says why."""


class SlurmCluster:
    """Two nodes, `n0` and `n1`. `srun` gives the command line of one."""

    def __init__(self, folder: Path) -> None:
        """Raises SlurmUnavailableError."""
        if lacking := [name for name in PROGRAMS if shutil.which(name) is None]:
            raise SlurmUnavailableError(
                f"{lacking[0]} is not installed (apt-get install slurm-wlm munge)"
            )
        if os.geteuid() != 0:
            raise SlurmUnavailableError("Slurm's daemons need root")
        self.folder = folder
        self._ended = ExitStack()
        self._said = ""

    @property
    def environment(self) -> dict[str, str]:
        clean = {name: v for name, v in os.environ.items() if not name.startswith("SLURM")}
        return {**clean, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._ended.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.close()

    def _start(self) -> None:
        folder = self.folder
        folder.chmod(0o755)  # munged looks at it
        (folder / "state").mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        ports = _free_ports(3)
        host = socket.gethostname().partition(".")[0]
        (folder / "slurm.conf").write_text(CONF.format(folder=folder, host=host, ports=ports))
        for node in ("n0", "n1"):
            (folder / f"spool-{node}").mkdir()
        files = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        named = [f"--{option}={folder}/munge.{end}" for option, end in files.items()]
        self._daemon(["munged", "--foreground", "--force", f"--key-file={key}", *named])
        self._until((folder / "munge.socket").exists, "munged")
        self._daemon(["slurmctld", "-D", "-i"])
        for node in ("n0", "n1"):
            self._daemon(["slurmd", "-D", "-N", node])
        self._until(lambda: self._idle() == 2, "the nodes")

    def _daemon(self, command: list[str]) -> None:
        with (self.folder / f"{command[0]}.out").open("ab") as log:
            process = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        self._ended.callback(_end, process)

    def _idle(self) -> int:
        said = subprocess.run(
            ["sinfo", "-h", "-N", "-o", "%T"], env=self.environment, capture_output=True, text=True,
            timeout=30, check=False,
        )  # fmt: skip
        self._said = said.stderr or said.stdout
        return said.stdout.split().count("idle")

    def _until(self, holds: object, what: str) -> None:
        assert callable(holds)
        until = time.monotonic() + START_S
        while not holds():
            if time.monotonic() > until:
                logs = "\n".join(
                    path.read_text(errors="replace")[-800:] for path in self.folder.glob("*.log")
                )
                raise SlurmUnavailableError(f"{what} did not come up: {self._said.strip()}\n{logs}")
            time.sleep(0.1)


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
            return
    process.wait()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]
