"""The process that has the model: `python -m asys_bench.eye.typed.child RUN MODEL GGUF_FILE`.

A JSON object a line, on standard input and output:

    -> {"id": 3, "sae": "...", "text": "..."}      -> {"cancel": 3}
    <- {"ready": {"about": "...", "warning": "..."}}, or {"failed": "..."}, once
    <- {"id": 3, "tokens": [...], "features": [...], ...}, or {"id": 3, "problem": "..."}

It ends with its input, and with its parent.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from asys_bench.eye.typed.reading import TextReader, TypedError
from asys_bench.placement.apply import use_torch_threads
from asys_bench.system.liveness import signal_on_parent_death


class _Questions:
    """Those that came, read by a thread of its own, so that a cancelled one is known while it is answered."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = lines
        self._waiting: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._cancelled: set[int] = set()
        threading.Thread(target=self._take, name="questions", daemon=True).start()

    def _take(self) -> None:
        for line in self._lines:
            asked = json.loads(line)
            if "cancel" in asked:
                self._cancelled.add(asked["cancel"])
            else:
                self._waiting.put(asked)
        self._waiting.put(None)

    def next(self) -> dict[str, Any] | None:
        return self._waiting.get()

    def is_cancelled(self, number: int) -> bool:
        return number in self._cancelled

    def forget(self, number: int) -> None:
        self._cancelled.discard(number)


def answers(reader: TextReader, questions: _Questions, out: IO[str]) -> None:
    """Until there are no more questions."""
    while (asked := questions.next()) is not None:
        number = int(asked["id"])
        try:
            found = reader.features(
                str(asked["sae"]), str(asked["text"]), lambda: questions.is_cancelled(asked["id"])
            )
        except TypedError as error:
            found = {"problem": str(error)}
        except Exception as error:  # noqa: BLE001 - a model is anybody's code; the next text may do
            found = {"problem": f"{type(error).__name__}: {error}"}
        questions.forget(number)
        _say({"id": number, **found}, out)


def _say(document: dict[str, Any], out: IO[str]) -> None:
    out.write(json.dumps(document, separators=(",", ":"), allow_nan=False) + "\n")
    out.flush()


def main(argv: list[str]) -> int:
    """RUN, MODEL, GGUF_FILE or an empty word."""
    signal_on_parent_death(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's; it closes our input
    use_torch_threads()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    run_dir, model, gguf_file = argv
    questions = _Questions(sys.stdin)
    try:
        reader = TextReader(Path(run_dir), model, gguf_file or None)
    except Exception as error:  # noqa: BLE001 - said on the page, whatever it is
        why = str(error) if isinstance(error, TypedError) else f"{type(error).__name__}: {error}"
        _say({"failed": why}, out)
        return 1
    _say({"ready": {"about": reader.known.about, "warning": reader.known.warning}}, out)
    answers(reader, questions, out)
    return 0


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))  # the server waits a second; taking torch down takes longer
