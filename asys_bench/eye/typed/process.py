"""The server's side of the process that has the model: started with the server, asked one text at a time.

A question waits for the model to be loaded, then at most `ANSWER_S`; a process that does not answer is
killed. Whoever stops waiting cancels the question, and the model stops at its next module.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from asys_bench.eye.features import Document
from asys_bench.eye.typed.reading import CancelledTypingError, TypedError

LOAD_S, ANSWER_S = 900.0, 120.0
LEAVE_S = 1.0
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
LOADING, READY, FAILED = "loading", "ready", "failed"


def child_command(run_dir: Path, model: str, gguf_file: str | None) -> list[str]:
    """What starts the process that has the model."""
    module = "asys_bench.eye.typed.child"
    return [sys.executable, "-P", "-m", module, str(run_dir), model, gguf_file or ""]


class Typing:
    """One text for one SAE, which may be cancelled from another thread."""

    def __init__(self, sae: str, text: str) -> None:
        self.sae, self.text = sae, text
        self.cancelled = False
        self._tell: Callable[[], None] = lambda: None

    def cancel(self) -> None:
        """Idempotent."""
        self.cancelled = True
        self._tell()


class ModelProcess:
    """`child`, with its state."""

    def __init__(self, run_dir: Path, model: str, gguf_file: str | None) -> None:
        self._child = subprocess.Popen(
            child_command(run_dir, model, gguf_file),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **QUIET},
            text=True,
        )
        self._numbers = itertools.count(1)
        self._changed = threading.Condition()
        self._state, self._problem = LOADING, ""
        self._ready: Document = {}
        self._wanted: int | None = None
        self._answer: Document | None = None
        self._reader = threading.Thread(target=self._read, name="eye-model-answers", daemon=True)
        self._reader.start()

    def document(self) -> Document:
        """How it is, for a page: state, about, warning, problem."""
        with self._changed:
            return {
                "about": "",
                "warning": "",
                **self._ready,
                "state": self._state,
                "problem": self._problem,
            }

    def ask(self, typing: Typing) -> Document:
        """What fires on a text, as `reading.TextReader.features` says; from one thread at a time.

        Raises:
            TypedError: it cannot be said; CancelledTypingError: `typing` was cancelled.
        """
        number = next(self._numbers)
        typing._tell = self._notice
        with self._changed:
            self._wait(lambda: self._state != LOADING or typing.cancelled, LOAD_S)
            self._must_go_on(typing)
            self._wanted, self._answer = number, None
        self._send({"id": number, "sae": typing.sae, "text": typing.text})
        with self._changed:
            try:
                self._wait(
                    lambda: self._answer is not None or self._state == FAILED or typing.cancelled,
                    ANSWER_S,
                )
                if typing.cancelled:
                    self._send({"cancel": number})
                self._must_go_on(typing)
                found: Document = self._answer or {}
            finally:
                self._wanted = None
        if "problem" in found:
            raise TypedError(str(found["problem"]))
        return {**found, "model": self._ready}

    def close(self) -> None:
        """End the process. Idempotent."""
        with suppress(OSError, ValueError):
            assert self._child.stdin is not None
            self._child.stdin.close()
        try:
            self._child.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._reader.join(LEAVE_S)
        if self._child.stdout is not None:
            self._child.stdout.close()

    def _wait(self, until: Callable[[], bool], seconds: float) -> None:
        if not self._changed.wait_for(until, seconds):
            self._child.kill()
            self._state, self._problem = FAILED, f"the model did not answer within {seconds:g} s"

    def _must_go_on(self, typing: Typing) -> None:
        if typing.cancelled:
            raise CancelledTypingError("cancelled")
        if self._state == FAILED:
            raise TypedError(self._problem)

    def _send(self, document: Document) -> None:
        assert self._child.stdin is not None
        with suppress(OSError, ValueError):  # it has ended, which its reader says
            self._child.stdin.write(json.dumps(document) + "\n")
            self._child.stdin.flush()

    def _notice(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _read(self) -> None:
        assert self._child.stdout is not None
        with suppress(ValueError):  # closed under it
            for line in self._child.stdout:
                self._take(json.loads(line))
        with self._changed:
            if self._state != FAILED:
                self._state = FAILED
                self._problem = "the model's process has ended; start asys-run eye again"
            self._changed.notify_all()

    def _take(self, said: Document) -> None:
        with self._changed:
            if "ready" in said:
                self._state, self._ready = READY, said["ready"]
            elif "failed" in said:
                self._state, self._problem = FAILED, str(said["failed"])
            elif said.get("id") == self._wanted:
                self._answer = {name: value for name, value in said.items() if name != "id"}
            self._changed.notify_all()
