"""Evaluations of SAEs while they are trained: `asys-run evaluate` in a process of its own.

The trainer starts one after every so many checkpoints of an SAE, one at a time, and reads what it wrote. It
takes the newest checkpoint that is there when it comes to read one: a trainer keeps few, and a process
takes seconds to begin.
The host is not asked: weights of a host that trains are those that it kept last (`run/weights.py`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, Field

from asys_bench.contracts.names import file_slug
from asys_bench.contracts.run_files import EVALUATION_DIR, LOGS_DIR
from asys_bench.contracts.sink import SinkContext
from asys_bench.system.files.atomic import open_private
from asys_bench.system.files.below import read_json

log = logging.getLogger(__name__)

NICER = 5
"""Added to the worker's niceness."""


class LiveEvaluationOptions(BaseModel, extra="forbid", frozen=True):
    """`evaluate` of the `sae_trainer` sink."""

    every: int = Field(default=4, ge=1, description="checkpoints of an SAE from one to the next")
    tokens: int = Field(default=2048, ge=2, description="tokens of text that each one takes")
    episodes: int = Field(default=10, ge=1, description="episodes that an agent plays in each one")
    device: str = Field(default="cpu", description="torch device that the model is loaded on")
    threads: int = Field(default=1, ge=1, le=1024, description="torch threads")


class LiveEvaluations:
    """Those of one worker. report: told the SAE's label and the document of each one."""

    def __init__(
        self,
        options: LiveEvaluationOptions,
        context: SinkContext,
        report: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._options, self._context, self._report = options, context, report
        self._written: dict[str, int] = {}
        self._waiting: list[str] = []
        self._running: tuple[str, subprocess.Popen[bytes]] | None = None
        self._out = context.run_dir / EVALUATION_DIR / f".{file_slug(context.name)}.json"
        self._failures = 0

    def checkpoint_written(self, label: str) -> None:
        """A checkpoint of the SAE called `label` is complete."""
        count = self._written[label] = self._written.get(label, 0) + 1
        if count % self._options.every == 0 and label not in self._waiting:
            self._waiting.append(label)

    def poll(self) -> None:
        """Take in what has ended, and start the next."""
        if self._running is not None:
            label, process = self._running
            code = process.poll()
            if code is None:
                return
            self._running = None
            self._ended(label, code)
        if self._waiting:
            self._start(self._waiting.pop(0))

    def close(self) -> None:
        """End the one that runs."""
        if self._running is not None:
            process = self._running[1]
            self._running = None
            process.kill()
            process.wait()
            with contextlib.suppress(OSError):  # it may have written already
                self._out.unlink()

    def _start(self, label: str) -> None:
        options, run_dir = self._options, self._context.run_dir
        command = [
            sys.executable, "-P", "-m", "asys_bench.cli.run", "evaluate", str(run_dir), "--live",
            "--sae", label, "--out", str(self._out), "--tokens", str(options.tokens),
            "--episodes", str(options.episodes), "--device", options.device,
            "--threads", str(options.threads),
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
        try:
            fd = open_private(
                run_dir / LOGS_DIR / f"{self._context.name}-evaluate.log",
                os.O_WRONLY | os.O_CREAT | os.O_APPEND,
            )
        except OSError as error:
            self._say(label, str(error))
            return
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=fd, stderr=fd, env=environment
            )
        except OSError as error:
            self._say(label, str(error))
            return
        finally:
            os.close(fd)
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, process.pid, os.getpriority(os.PRIO_PROCESS, 0) + NICER)
        self._running = (label, process)

    def _ended(self, label: str, code: int) -> None:
        try:
            # Where SIGCHLD is ignored, the exit code is lost: the document tells.
            (document,) = read_json(self._out, below=self._context.run_dir)
            self._out.unlink()
            if not isinstance(document, dict):
                raise ValueError("no object")
        except (OSError, ValueError, TypeError) as error:
            self._say(label, f"exit code {code}" if code else str(error))
            return
        self._failures = 0
        self._report(label, document)

    def _say(self, label: str, reason: str) -> None:
        self._failures += 1
        if self._failures == 1:
            log.warning(
                "%s: not evaluated (further failures are only counted): %s; see %s-evaluate.log",
                label,
                reason,
                self._context.name,
            )
