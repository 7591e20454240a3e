"""A receiver as a process of its own, started again when it ends: what an actor of the pool looks after.

The receiver outlives its actor for as long as it needs to drain: it leaves in order when the other end of
its lifeline, a pipe, is closed, which the kernel does however the actor ends. (PDEATHSIG would come when
the *thread* that started it ends.) A shell stands between both, because Ray kills the children of a worker
that it ends, at once; it hands on the receiver's exit code. Output goes to a file: a pipe would break with
the actor, while the receiver still writes.

    listening   accepts connections       starting   not yet
    pausing     ended, and starts again   leaving    was asked to leave
    ended       left of its own accord: nobody was connected for `idle_ttl_s`
    stopped     left when it was asked to
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from asys_bench.contracts.exit_codes import EXIT_OK
from asys_bench.system.files.atomic import make_private_folder, open_private
from asys_bench.system.files.below import read_json

FIRST_PAUSE_S, LONGEST_PAUSE_S, SETTLED_S = 0.5, 30.0, 60.0
"""Before a start; doubled each time, until a receiver has run for SETTLED_S."""
HUNG_S = 30.0
"""A receiver whose file was not rewritten for so long is killed; it does so every 2 s, but not while its
workers start or drain."""
POLL_S = 0.1
FIRST_BYTES, LAST_BYTES, MOST_LOG_BYTES = 1 << 20, 4096, 8 << 20
"""Of a start's output, where the address is looked for, and the last line; of the log of all starts."""
_SHELL = ("/bin/sh", "-c", 'trap : TERM INT HUP; "$@"; exit $?', "asys-receiver")
_LISTENING = re.compile(rb"^receiver \S+: listening at (tcp://\S+)$", re.MULTILINE)


class State(StrEnum):
    """Where a receiver is."""

    STARTING = "starting"
    LISTENING = "listening"
    PAUSING = "pausing"
    LEAVING = "leaving"
    ENDED = "ended"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class ReceiverState:
    """starts: of the process, by this actor. code: how it ended last, a signal as its negative number;
    None: it has not. said: the last line of its log."""

    state: State
    address: str = ""
    pid: int = 0
    starts: int = 0
    code: int | None = None
    said: str = ""


class ReceiverProcess:
    """One receiver. log: of all its starts; status: the file that it rewrites while it lives."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        status: Path,
        *,
        environment: Mapping[str, str] | None = None,
        cwd: str | None = None,
        hung_s: float = HUNG_S,
        first_pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        self._command, self._log, self._status = tuple(command), log, status
        self._environment, self._cwd = environment, cwd
        self._hung_s, self._first_pause_s = hung_s, first_pause_s
        self._lock = threading.Lock()
        self._leave = threading.Event()
        self._lifeline: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._state, self._starts = State.STARTING, 0
        self._code: int | None = None
        self._log_begin, self._address = 0, ""
        make_private_folder(log.parent)
        self._thread = threading.Thread(target=self._keep, name="asys-receiver", daemon=True)
        self._thread.start()

    def state(self) -> ReceiverState:
        """Where it is now."""
        process, state = self._process, self._state
        if not self._address and state in (State.STARTING, State.LEAVING):
            found = _LISTENING.search(self._output(0, FIRST_BYTES))
            self._address = found[1].decode(errors="replace") if found is not None else ""
        if state is State.STARTING and self._address:
            state = State.LISTENING
        lines = self._output(-LAST_BYTES, LAST_BYTES).decode(errors="replace").split("\n")
        return ReceiverState(
            state,
            self._address,
            _child_of(process.pid) if process is not None and process.poll() is None else 0,
            self._starts,
            self._code,
            next((line.strip() for line in reversed(lines) if line.strip()), ""),
        )

    def leave(self) -> None:
        """Ask it to drain, write and leave, for good. Idempotent."""
        with self._lock:
            self._leave.set()
            self._close_lifeline()

    def stop(self, within_s: float) -> bool:
        """`leave`, and wait; after `within_s` it is killed. Whether it left by itself."""
        self.leave()
        self._thread.join(within_s)
        left = not self._thread.is_alive()
        if not left:
            self._kill()
            self._thread.join(POLL_S * 20)
        return left

    def _keep(self) -> None:
        pause_s = self._first_pause_s
        while not self._leave.is_set():
            began = time.monotonic()
            code = self._run_once()
            self._code = code
            if self._leave.is_set():
                break
            if code == EXIT_OK:
                self._state = State.ENDED
                return
            self._state = State.PAUSING
            if time.monotonic() - began > SETTLED_S:
                pause_s = self._first_pause_s
            self._leave.wait(pause_s)
            pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
        self._state = State.STOPPED

    def _run_once(self) -> int | None:
        """The exit code; None where it could not be started."""
        with self._lock:
            if self._leave.is_set():
                return None
            try:
                process = self._start()
            except OSError as error:
                self._write_log(f"the receiver cannot be started: {error}\n")
                return None
            self._process, self._state, self._address = process, State.STARTING, ""
            self._starts += 1
        seen, seen_at = self._written(), time.monotonic()
        while process.poll() is None:
            time.sleep(POLL_S)
            if self._leave.is_set():
                self._state = State.LEAVING
            now = self._written()
            if now != seen or now is None:
                seen, seen_at = now, time.monotonic()
            elif time.monotonic() - seen_at > self._hung_s and self.state().address:
                self._write_log(
                    f"{self._status} was not rewritten for {self._hung_s:g} s: killed\n"
                )
                self._kill()
                seen_at = time.monotonic()
        with self._lock:
            self._close_lifeline()
        return process.returncode if process.returncode < 128 else 128 - process.returncode

    def _start(self) -> subprocess.Popen[bytes]:
        with suppress(OSError):
            if self._log.stat().st_size > MOST_LOG_BYTES:
                self._log.replace(self._log.with_name(f"{self._log.name}.1"))
        log = open_private(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        theirs, ours = os.pipe()
        try:
            self._log_begin = os.fstat(log).st_size
            process = subprocess.Popen(
                [*_SHELL, *self._command, "--lifeline-fd", str(theirs)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(theirs,),
                start_new_session=True,
                env=self._environment,
                cwd=self._cwd,
            )
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
            os.close(log)
        self._lifeline = ours
        return process

    def _close_lifeline(self) -> None:
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None

    def _kill(self) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(_child_of(process.pid) or process.pid, signal.SIGKILL)

    def _written(self) -> int | None:
        try:
            return self._status.stat().st_mtime_ns
        except OSError:
            return None

    def _output(self, begin: int, most_bytes: int) -> bytes:
        """Of this start; a negative begin counts from the end."""
        try:
            with self._log.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(
                    max(self._log_begin, end + begin if begin < 0 else self._log_begin + begin)
                )
                return file.read(most_bytes)
        except OSError:
            return b""

    def _write_log(self, text: str) -> None:
        with suppress(OSError), self._log.open("ab") as file:
            file.write(text.encode(errors="replace"))


def read_status(path: Path, below: Path) -> dict[str, Any] | None:
    """What a receiver says of itself; None: nothing that can be read."""
    try:
        document = read_json(path, below=below)
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def _child_of(pid: int) -> int:
    """The first child of a process; 0: it has none."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return int((file.read().split() or ["0"])[0])
    except (OSError, ValueError):
        return 0
