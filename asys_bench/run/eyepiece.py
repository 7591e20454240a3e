"""Starts the eyepiece beside a run (`run.eye`): a process of its own that the host keeps nothing of.

It sees by itself when the run has ended (`eye.beside_run`), and it is no child of the host's. Nothing here
raises or waits: a run without its eyepiece is a run.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from asys_bench.contracts.run_files import LOGS_DIR, log_file
from asys_bench.eye.address import check_installed
from asys_bench.placement.apply import thread_environment
from asys_bench.system.descriptor import Descriptor
from asys_bench.system.files.atomic import open_private
from asys_bench.system.liveness import ProcessHandle
from asys_bench.system.process import start_time
from asys_bench.system.standard_fds import standard_fds_taken
from asys_bench.workers.supervisor import absolute_python_path

log = logging.getLogger(__name__)
MODULE, NAME = "asys_bench.eye.beside_run", "eye"
REAP_S = 5.0
Say = Callable[[str], None]


def start_eyepiece(run_dir: Path, cpus: Collection[int], say: Say, fail: Say) -> None:
    """Of the run in `run_dir`, whose run.json names this process.

    cpus: where it runs; empty: wherever this process may.
    say: given its address, token included, in a thread, once it can be opened.
    fail: given the message of a `NoEyepieceError` instead, perhaps in that thread.
    """
    try:
        check_installed()
        told, started = _spawn(run_dir, cpus)
    except (RuntimeError, ValueError, OSError) as error:
        fail(f"no eyepiece: {error}")
        return
    heard = (run_dir, told, started, say, fail)
    threading.Thread(target=_hear, args=heard, name="asys-eye", daemon=True).start()


def _spawn(run_dir: Path, cpus: Collection[int]) -> tuple[Descriptor, ProcessHandle | None]:
    """(what it says, the process that is started, which leaves at once). Raises OSError."""
    (run_dir / LOGS_DIR).mkdir(mode=0o700, exist_ok=True)
    end, pipe = os.pipe()
    told = Descriptor(end)
    host = (str(os.getpid()), str(start_time(os.getpid())))
    try:
        with (
            standard_fds_taken(),
            os.fdopen(
                open_private(log_file(run_dir, NAME), os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab"
            ) as errors,
        ):
            # -P keeps the working directory off sys.path; a session of its own keeps Ctrl-C away.
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", MODULE, str(run_dir), *host],
                stdin=subprocess.DEVNULL,
                stdout=pipe,
                stderr=errors,
                cwd="/",
                env={**os.environ, **absolute_python_path(), **thread_environment(1)},
                start_new_session=True,
            )
    except OSError:
        told.close()
        raise
    finally:
        os.close(pipe)
    process.returncode = 0  # only the pidfd stands for it: Popen would wait for a pid of the host's
    with suppress(OSError):
        if cpus:
            os.sched_setaffinity(process.pid, cpus)
    try:
        return told, ProcessHandle(process.pid)
    except OSError:  # the kernel or the host has waited for it
        return told, None


def _hear(
    run_dir: Path, told: Descriptor, started: ProcessHandle | None, say: Say, fail: Say
) -> None:
    line = b""
    with suppress(OSError):
        while not line.endswith(b"\n") and (part := os.read(told.number, 4096)):
            line += part
    told.close()
    if started is not None and started.wait(REAP_S):
        started.reap()
        started.close()
    try:
        if line.endswith(b"\n"):
            say(line.decode().strip())
        else:
            fail(f"no eyepiece: it did not start; see {log_file(run_dir, NAME)}")
    except Exception:  # a stream or a handler of the host's, which is not worth a traceback there
        log.debug("the eyepiece could not be told of", exc_info=True)
