"""Real processes for the bus tests, driven by commands (`remote_process.py` is their side)."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asys_bench.contracts.bus import BusHandle, GroupSpec

SCRIPT = Path(__file__).with_name("remote_process.py")
TIMEOUT_S = 240.0


class Remote:
    """One process; `remote.pull(most=3, timeout_s=1)` runs `Puppet.pull` there."""

    def __init__(self, control: socket.socket, pid: int) -> None:
        control.settimeout(TIMEOUT_S)
        self._control = control
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)
        self.fds: tuple[int, ...] = ()
        """Descriptors that came with the last reply; the caller closes them."""

    def call(self, do: str, fds: Sequence[int] = (), **args: Any) -> Any:
        """Run a command and return its value; raises what it raised as RuntimeError."""
        self.start(do, fds, **args)
        return self.result()

    def start(self, do: str, fds: Sequence[int] = (), **args: Any) -> None:
        """Run a command without waiting for `result`."""
        message = json.dumps({"do": do, "args": args}).encode()
        socket.send_fds(self._control, [message], fds)

    def result(self) -> Any:
        data, fds, _, _ = socket.recv_fds(self._control, 1 << 20, 64)
        self.fds = tuple(fds)
        assert data, f"process {self.pid} died"
        reply = json.loads(data)
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return reply["value"]

    def attach(self, handle: BusHandle, group: str | None = None, member: str = "far") -> Remote:
        """Attach to a bus and, when given, join `group`."""
        assert self.call("attach", handle.fds, handle=handle.to_dict()) == self.pid
        if group is not None:
            self.call("subscribe", group=group, member=member)
        return self

    def own(self, backend: str, *groups: GroupSpec, shards: int = 1) -> BusHandle:
        """Build a bus over there; the caller closes the handle's descriptors."""
        specs = [{"name": g.name, "delivery": g.delivery.value, "hooks": g.hooks} for g in groups]
        data = self.call("own", backend=backend, groups=specs, shards=shards)
        return BusHandle.from_dict(data, self.fds)

    def signal(self, number: int) -> None:
        """Send a signal to exactly this process."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> int:
        """SIGKILL, then wait until the kernel confirms the death. Returns the pid."""
        self.signal(signal.SIGKILL)
        assert select.select([self._pidfd], [], [], TIMEOUT_S)[0], f"{self.pid} does not die"
        return self.pid

    def end(self) -> None:
        """Kill and let go of everything."""
        self.kill()
        os.close(self._pidfd)
        self._control.close()


class Nursery:
    """Forks puppets from one process that has imported everything already."""

    def __init__(self) -> None:
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._children: list[Remote] = []

    def child(self) -> Remote:
        """A fresh process."""
        if self._control is None:
            self._process, self._control = start_script("nurse")
            assert self._control.recv(16) == b"ready"
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        socket.send_fds(self._control, [b"fork"], [far.fileno()])
        far.close()
        remote = Remote(near, int(self._control.recv(16)))
        self._children.append(remote)
        return remote

    def end_children(self) -> None:
        for remote in self._children:
            remote.end()
        self._children.clear()

    def close(self) -> None:
        self.end_children()
        if self._control is not None and self._process is not None:
            self._control.close()
            end_script(self._process)


def start_script(
    role: str, under: Sequence[str] = ()
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """`remote_process.py` as an ordinary spawned process; `under` goes before its command."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    near.settimeout(TIMEOUT_S)
    command = [*under, sys.executable, str(SCRIPT), role, str(far.fileno())]
    process = subprocess.Popen(command, pass_fds=[far.fileno()])
    far.close()
    return process, near


def end_script(process: subprocess.Popen[bytes]) -> None:
    """End a spawned process by its id."""
    process.kill()
    process.wait(TIMEOUT_S)
