"""Launchers: how a round gets its process. A new interpreter, or a fork of one that imported everything."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from asys_bench.harness.measuring.child import ProcessEnd, await_end, end_group
from asys_bench.harness.planning.plan import environment_length
from asys_bench.harness.results.result_run import RoundStatus
from asys_bench.harness.round import ROUND_FILE, SAMPLES_FILE, RoundSpec

LOG_CHARS = 4000
PADDING = "ASYS_BENCH_PADDING"
_UNKNOWN_END = "its exit code is not known: this process ignores SIGCHLD, or waits for every child"


@dataclass(frozen=True)
class RoundEnd:
    """How a round ended, and what it left."""

    status: RoundStatus
    wall_s: float
    document: Mapping[str, Any] | None = None
    """round.json; None unless it ended well."""
    samples: Mapping[str, npt.NDArray[np.float64]] | None = None
    error: str | None = None
    log: str | None = None
    pid: int | None = None


class Launcher(Protocol):
    """Runs one round and comes back with how it ended; never raises for a round's own failure."""

    def run(self, spec: RoundSpec, timeout_s: float) -> RoundEnd: ...

    def close(self) -> None:
        """End what it keeps running; also between two blocks of rounds, after which it goes on."""


class FreshProcess:
    """A new interpreter per round, with its own address space layout and environment length."""

    def __init__(self, python: str = sys.executable) -> None:
        self._python = python

    def run(self, spec: RoundSpec, timeout_s: float) -> RoundEnd:
        with tempfile.TemporaryDirectory(prefix="asys-bench-") as folder:
            spec = replace(spec, folder=folder)
            log = Path(folder) / "log"
            started = time.monotonic()
            with log.open("wb") as output, tempfile.TemporaryFile() as given:
                given.write(spec.to_json().encode())
                given.seek(0)
                process = subprocess.Popen(
                    [self._python, "-P", "-m", "asys_bench.harness.round"],
                    stdin=given,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=_padded(spec.seed),
                    start_new_session=True,  # one signal reaches it and all that it has forked
                )
            end = await_end(process.pid, timeout_s)
            process.returncode = end.code or 0  # or Popen would wait for a pid that is a stranger's
            return _collect(Path(folder), end, time.monotonic() - started, timeout_s)

    def close(self) -> None:
        return None


def _padded(seed: int) -> dict[str, str]:
    """This process's environment with a padding of random length."""
    return {**os.environ, PADDING: "x" * environment_length(seed)}


class ForkedProcess:
    """Forks each round from a server that has imported everything.

    The server is a new interpreter after each `close`, with an address space layout and an environment
    length of its own.
    """

    def __init__(self, python: str = sys.executable) -> None:
        self._server: subprocess.Popen[str] | None = None
        self._python = python

    def run(self, spec: RoundSpec, timeout_s: float) -> RoundEnd:
        with tempfile.TemporaryDirectory(prefix="asys-bench-") as folder:
            spec = replace(spec, folder=folder)
            server = self._started(spec.seed)
            assert server.stdin is not None
            assert server.stdout is not None
            started = time.monotonic()
            server.stdin.write(json.dumps({"timeout_s": timeout_s, "spec": spec.to_json()}) + "\n")
            server.stdin.flush()
            line = server.stdout.readline()
            wall_s = time.monotonic() - started
            if not line:
                self.close()
                return RoundEnd(RoundStatus.CRASHED, wall_s, error="the fork server died")
            end = ProcessEnd(**json.loads(line))
            return _collect(Path(folder), end, wall_s, timeout_s)

    def _started(self, seed: int) -> subprocess.Popen[str]:
        if self._server is None or self._server.poll() is not None:
            self._server = subprocess.Popen(
                [self._python, "-P", "-m", "asys_bench.harness.fork_server"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=_padded(seed),
                start_new_session=True,
            )
        return self._server

    def close(self) -> None:
        """End the server; the round it may be running ends with it."""
        if self._server is not None:
            assert self._server.stdin is not None
            assert self._server.stdout is not None
            self._server.terminate()  # it ends its round's process group, then itself
            try:
                self._server.wait(5.0)
            except subprocess.TimeoutExpired:
                end_group(self._server.pid)
                self._server.wait()
            self._server.stdin.close()
            self._server.stdout.close()
            self._server = None


def _collect(folder: Path, end: ProcessEnd, wall_s: float, timeout_s: float) -> RoundEnd:
    log, pid = "", end.pid
    if (folder / "log").is_file():
        log = (folder / "log").read_text(errors="replace")[-LOG_CHARS:]
    if end.timed_out:
        error = f"no result within {timeout_s:g} s"
        return RoundEnd(RoundStatus.TIMEOUT, wall_s, error=error, log=log, pid=pid)
    if end.code:
        return RoundEnd(RoundStatus.CRASHED, wall_s, error=_why(end.code, log), log=log, pid=pid)
    try:
        document = json.loads((folder / ROUND_FILE).read_text())
        with np.load(folder / SAMPLES_FILE) as arrays:
            samples = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError) as broken:
        how = "" if end.code == 0 else f" ({_UNKNOWN_END})"
        error = f"no result{how}: {broken}"
        return RoundEnd(RoundStatus.CRASHED, wall_s, error=error, log=log, pid=pid)
    status = RoundStatus.INVALID if document["faults"] else RoundStatus.OK
    faults = ", ".join(document["faults"]) or None
    return RoundEnd(status, wall_s, document, samples, faults, log or None, pid)


def _why(code: int, log: str) -> str:
    if code < 0:
        return f"ended by signal {-code} ({signal.Signals(-code).name})"
    lines = [line for line in log.splitlines() if line.strip()]
    return f"exit code {code}: {lines[-1].strip()}" if lines else f"exit code {code}"


def launcher_for(process: str, python: str | None = None) -> Launcher:
    """The launcher that the suite asks for."""
    interpreter = python or sys.executable
    if shutil.which(interpreter) is None:
        raise FileNotFoundError(f"no such interpreter: {interpreter}")
    return FreshProcess(interpreter) if process == "fresh" else ForkedProcess(interpreter)
