"""How the ranks of a node find the run that local rank 0 has started.

Local rank 0 listens on an abstract Unix socket whose name follows from the job. The others connect and
read the run's directory, or why there is none. Where ranks hook different modules, they say first which
(`RankListener.collect`). Nothing lies on disk, nothing survives the process, and
only processes of the same user are answered or believed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Any

from asys_bench.system.descriptor import HeldSocket
from asys_bench.system.launcher import LocalRanks

_CREDENTIALS = struct.Struct("3i")
_RETRY_S = 0.05
_MAX_ANSWER = 1 << 22


class RendezvousError(RuntimeError):
    """Local rank 0 did not answer, or could not start the run; says which and the fix."""


def _address(ranks: LocalRanks, serial: int) -> str:
    key = f"{os.geteuid()}|{ranks.job}|{serial}"
    return "\0asys-ranks-" + hashlib.sha256(key.encode()).hexdigest()[:40]


def _is_ours(channel: socket.socket) -> bool:
    raw = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(raw)
    return bool(uid == os.geteuid())


class RankListener:
    """Local rank 0's side: listens at once, answers once there is something to say.

    serial: number of the observation in this process; ranks make them in the same order.
    """

    def __init__(self, ranks: LocalRanks, serial: int) -> None:
        """Raises RendezvousError: somebody answers for this job already."""
        self._left = ranks.local_world_size - 1
        self._listener = HeldSocket(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        self._thread: threading.Thread | None = None
        self._waiting: list[socket.socket] = []
        try:
            self._listener.sock.bind(_address(ranks, serial))
            self._listener.sock.listen(ranks.local_world_size)
        except OSError as error:
            self._listener.close()
            raise RendezvousError(
                f"the ranks of this job cannot find each other ({error}): two jobs share MASTER_ADDR, "
                "MASTER_PORT and their run id; give each its own --rdzv-id or --master-port"
            ) from error

    def collect(self, timeout_s: float) -> list[Any]:
        """Wait until every other rank has told what it hooks (`find_run`); their answer comes later.

        Raises:
            RendezvousError: one has not within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        told: list[Any] = []
        try:
            while len(told) < self._left:
                told.append(self._hear(deadline))
        except (OSError, ValueError) as error:
            raise RendezvousError(
                f"{self._left - len(told)} of the other ranks of this node have not said within "
                f"{timeout_s:g} s what they hook, which a rule with `missing: ok` needs ({error}): call "
                "observe() on every rank, with the same rules"
            ) from error
        finally:
            self._listener.sock.settimeout(None)
        return told

    def _hear(self, deadline: float) -> Any:
        """What one rank says; its channel waits for the answer."""
        while True:
            self._listener.sock.settimeout(max(0.01, deadline - time.monotonic()))
            channel, _ = self._listener.sock.accept()
            if _is_ours(channel):
                break
            channel.close()
        self._waiting.append(channel)
        channel.settimeout(max(0.01, deadline - time.monotonic()))
        return json.loads(_read(channel))

    def announce(self, run_dir: Path) -> None:
        """The run is up: tell every other rank where."""
        self._answer({"run_dir": str(run_dir)})

    def refuse(self, reason: str) -> None:
        """There will be no run: tell every other rank why."""
        self._answer({"error": reason})

    def close(self) -> None:
        """Stop answering. Idempotent."""
        for channel in self._waiting:
            channel.close()
        with contextlib.suppress(OSError):
            self._listener.sock.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._listener.close()
        if self._thread is not None:
            self._thread.join(1.0)

    def _answer(self, message: dict[str, str]) -> None:
        data = json.dumps(message).encode()
        self._thread = threading.Thread(
            target=self._serve, args=(data,), name="asys-ranks", daemon=True
        )
        self._thread.start()

    def _serve(self, data: bytes) -> None:
        for channel in self._waiting:
            self._give(channel, data)
        while self._left > 0:
            try:
                channel, _ = self._listener.sock.accept()
            except OSError:
                return
            if _is_ours(channel):
                self._give(channel, data)
            else:
                channel.close()
        self._listener.close()

    def _give(self, channel: socket.socket, data: bytes) -> None:
        with channel, contextlib.suppress(OSError):
            channel.settimeout(1.0)
            channel.sendall(data)
            self._left -= 1


def find_run(ranks: LocalRanks, serial: int, timeout_s: float, told: Any = None) -> Path:
    """The directory of the run that local rank 0 has started; waits for it.

    told: what this rank hooks, as plain data, for `RankListener.collect`.

    Raises:
        RendezvousError: no answer within `timeout_s`, or local rank 0 could not start it.
    """
    deadline = time.monotonic() + timeout_s
    while (left_s := deadline - time.monotonic()) > 0:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
            channel.settimeout(left_s)
            try:
                channel.connect(_address(ranks, serial))
                if not _is_ours(channel):
                    raise RendezvousError("another user answers in local rank 0's place")
                if told is not None:
                    channel.sendall(json.dumps(told).encode())
                    channel.shutdown(socket.SHUT_WR)
                data = _read(channel)
            except OSError:
                data = b""
        if data:
            message = json.loads(data)
            if "error" in message:
                raise RendezvousError(f"local rank 0 could not start the run: {message['error']}")
            return Path(message["run_dir"])
        time.sleep(_RETRY_S)
    raise RendezvousError(
        f"local rank 0 started no run within {timeout_s:g} s: call observe() on every rank, as often "
        "and in the same order, or pass distributed=False where only some ranks are observed"
    )


def _read(channel: socket.socket) -> bytes:
    data = b""
    while len(data) < _MAX_ANSWER:
        piece = channel.recv(1 << 16)
        if not piece:
            return data
        data += piece
    return b""
