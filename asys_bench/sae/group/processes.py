"""The processes of a group, from rank 0's side: started, watched, ended as one.

Rank 0 is the process that a supervisor knows (a worker, or `asys-run train`); the others are its children.
Commands go over a socket each; what a rank sends by `torch.distributed` goes over loopback, and the ranks
meet by a file in memory, which nobody has to remove.

- The others get SIGKILL when rank 0 ends, also while they are stopped, and leave when their socket is closed.
- Rank 0 finds that one has ended, or has been silent for `SILENT_S` while it is waited for, and raises
  GroupError: its process ends, and whoever restarts it restarts the group. Silent is who neither computes nor
  waits for a CPU, so a slow rank is waited for.
- Nothing waits for ranks that are still starting: `ready` says whether all are there.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from asys_bench.sae.group.distributed import Backend, DistributedRanks
from asys_bench.sae.ranks import GroupError, Split
from asys_bench.sae.training.device import DeviceUnavailableError
from asys_bench.system.liveness import is_stopped, waited_for_cpu_ns
from asys_bench.system.process_usage import process_usage

log = logging.getLogger(__name__)
RANK_MODULE = "asys_bench.workers.trainer_rank"
SILENT_S = 10.0
"""As long as a worker may be silent by default (`watchdog.heartbeat_timeout_s`)."""
LONGEST_LOOK_S = 1.0
"""Of a longer time between two looks only so much counts: rank 0 itself was stopped or starved."""
LEAVE_S = 2.0


class GroupProcesses:
    """A `TrainerGroup`.

    places: of each rank but 0, `Placement.to_dict()` and `most_bytes` of its GPU; `device` names it.
    device: rank 0's. threads: of torch, at each rank. heartbeat: called while rank 0 waits.
    """

    def __init__(
        self,
        split: Split,
        places: Sequence[Mapping[str, Any]],
        *,
        device: torch.device,
        threads: int = 1,
        heartbeat: Callable[[], None] = lambda: None,
    ) -> None:
        self.size = 1 + len(places)
        backend = backend_for([str(device), *(str(place.get("device", "")) for place in places)])
        self.ranks = DistributedRanks(
            0, self.size, split, backend=backend, device=device, watch=self._watch
        )
        self._heartbeat, self._keys = heartbeat, 0
        self._store = os.memfd_create("asys-group")
        self._others: list[_Rank] = []
        self._awaited = False
        for index, place in enumerate(places):
            about = {
                "rank": index + 1,
                "size": self.size,
                "split": split,
                "backend": backend,
                "threads": threads,
                "place": dict(place),
            }
            self._others.append(_Rank(about, self._store))

    def ready(self) -> bool:
        if self.ranks.connected:
            return True
        self._watch()
        heard = [rank.heard_hello() for rank in self._others]
        if not all(heard):
            return False
        self.tell({"do": "connect", "key": 0})
        self._awaited = True
        self.ranks.connect(f"/proc/self/fd/{self._store}")
        log.info("%d ranks train together (%s)", self.size, self.ranks.split)
        return True

    def wait_until_ready(self, timeout_s: float) -> None:
        """Raises GroupError: they are not there in time, or one has ended."""
        deadline = time.monotonic() + timeout_s
        while not self.ready():
            if time.monotonic() > deadline:
                raise GroupError(f"not all {self.size} ranks have started within {timeout_s:g} s")
            time.sleep(0.02)

    def new_key(self) -> int:
        self._keys += 1
        return self._keys

    def tell(self, command: Mapping[str, Any]) -> None:
        line = json.dumps(command, allow_nan=False).encode() + b"\n"
        for rank in self._others:
            try:
                rank.channel.sendall(line)
            except OSError as error:
                self._watch()
                raise GroupError(f"rank {rank.number} cannot be told anything: {error}") from error

    def hear(self) -> list[dict[str, Any]]:
        answers = [rank.next_line(self._watch) for rank in self._others]
        for rank, answer in zip(self._others, answers, strict=True):
            if "error" in answer:
                raise GroupError(f"rank {rank.number} of {self.size} has failed: {answer['error']}")
        return answers

    def close(self) -> None:
        """The others leave, or are ended. Idempotent."""
        for rank in self._others:
            rank.channel.close()
        deadline = time.monotonic() + LEAVE_S
        for rank in self._others:
            rank.end(deadline)
        self.ranks.disconnect()
        if self._others:
            os.close(self._store)
        self._others = []

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the other ranks."""
        return tuple(rank.process.pid for rank in self._others)

    def _watch(self) -> None:
        """Raises GroupError when a rank has ended or is silent."""
        self._heartbeat()
        for rank in self._others:
            if (how := rank.ended()) is not None:
                raise GroupError(f"rank {rank.number} of {self.size} has ended: {how}")
        silent = [rank for rank in self._others if rank.silence_s() > SILENT_S]
        for rank in sorted(silent, key=lambda one: not one.stopped):
            if not (rank.stopped or self._awaited):
                continue  # it starts, which takes as long as its disk does
            stopped = " (it is stopped)" if rank.stopped else ""
            rank.process.kill()
            raise GroupError(
                f"rank {rank.number} of {self.size} (pid {rank.process.pid}) has been silent for "
                f"{SILENT_S:g} s{stopped}: killed"
            )


class _Rank:
    """A process and the socket to it."""

    def __init__(self, about: Mapping[str, Any], store: int) -> None:
        self.number = int(about["rank"])
        self.channel, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", RANK_MODULE, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), store),
                cwd="/",
            )
        self._text = b""
        self._hello = False
        self._spent = (0.0, 0)
        self._silent_s, self._looked_at = 0.0, time.monotonic()
        self.channel.sendall(json.dumps({**about, "store": store}).encode() + b"\n")

    def heard_hello(self) -> bool:
        """Whether it has said that it is there; does not wait."""
        if not self._hello and self._readable(0.0):
            self._hello = self._read_line() is not None
        return self._hello

    def next_line(self, watch: Callable[[], None]) -> dict[str, Any]:
        """Its next answer."""
        while (line := self._read_line() if self._readable(0.2) else None) is None:
            watch()
        return line

    def ended(self) -> str | None:
        """How, where it has ended, with what it said; None while it is there."""
        code = self.process.poll()
        if code is None:
            return None
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        said = ""
        while self._readable(0.0) and (line := self._read_line()) is not None:
            said = str(line.get("error", said))
        return f"{how}: {said}" if said else how

    @property
    def stopped(self) -> bool:
        return is_stopped(self.process.pid)

    def silence_s(self) -> float:
        """Seconds in which it neither computed nor waited for a CPU, over the looks so far."""
        now, pid = time.monotonic(), self.process.pid
        usage = process_usage(pid)
        spent = (usage[0] if usage else 0.0, waited_for_cpu_ns(pid) // 10_000_000)
        passed_s = now - self._looked_at
        self._looked_at = now
        fresh = passed_s > 2 * LONGEST_LOOK_S  # nobody waited for it meanwhile
        if spent != self._spent or fresh:
            self._spent, self._silent_s = spent, 0.0
        else:
            self._silent_s += min(passed_s, LONGEST_LOOK_S)
        return self._silent_s

    def end(self, deadline: float) -> None:
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _readable(self, timeout_s: float) -> bool:
        if b"\n" in self._text:
            return True
        try:
            return bool(select.select([self.channel], [], [], timeout_s)[0])
        except (OSError, ValueError):
            return False

    def _read_line(self) -> dict[str, Any] | None:
        while b"\n" not in self._text:
            try:
                more = self.channel.recv(1 << 16)
            except OSError:
                return None
            if not more:
                return None
            self._text += more
        line, _, self._text = self._text.partition(b"\n")
        found = json.loads(line)
        assert isinstance(found, dict)
        return found


def backend_for(devices: Sequence[str]) -> Backend:
    """NCCL where each rank has a GPU of its own."""
    gpus = {device for device in devices if device.startswith("cuda:")}
    return "nccl" if len(gpus) == len(devices) else "gloo"


def devices_for(wish: str, ranks: int) -> list[str]:
    """What each of so many processes opens where no plan has chosen for it (`open_device`): of GPUs each
    another one.

    Raises:
        DeviceUnavailableError: `wish` is `cuda`, and there are fewer.
    """
    if ranks == 1 or wish not in ("auto", "cuda"):
        return [wish] * ranks
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus >= ranks:
        return [f"cuda:{index}" for index in range(ranks)]
    if wish == "auto":
        return ["cpu"] * ranks
    raise DeviceUnavailableError(
        f"device cuda: group.size asks for {ranks} GPUs, and this process sees {gpus}; lower group.size, or "
        "set device: cpu"
    )
