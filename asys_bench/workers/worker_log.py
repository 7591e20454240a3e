"""What a worker wrote to its log before it died or gave up: for errors, summaries and the terminal.

Every worker writes its log, also one that dies while it attaches to the bus. A message is the first line
of a record of level WARNING or above. Of a traceback it is the last line, which names the error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from asys_bench.contracts.run_files import log_file
from asys_bench.placement.plan import WATCHDOG

MOST_MESSAGES, MOST_CHARACTERS = 4, 500
_READ_BYTES = 256 << 10
_RECORD = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR|CRITICAL) (?:[\w.]+: )?(.*)"
)
_LOUD = ("WARNING", "ERROR", "CRITICAL")


def messages_of(run_dir: Path, process: str) -> list[str]:
    """The distinct warnings and errors in a process's log, the last few, oldest first; [] without."""
    tail = _tail(log_file(run_dir, process))
    return list(dict.fromkeys(_shortened(text) for text in _messages(tail)))[-MOST_MESSAGES:]


def last_line(run_dir: Path, process: str) -> str:
    """The last line of a process's log that is not empty; "" when there is none."""
    lines = [line.strip() for line in _tail(log_file(run_dir, process)).splitlines()]
    return _shortened(next((line for line in reversed(lines) if line), ""))


def why_it_ended(run_dir: Path, process: str) -> str:
    """The last message of a process, with the log that holds it: an existing file, never a wrong path."""
    log = log_file(run_dir, process)
    messages = messages_of(run_dir, process)
    last = messages[-1] if messages else last_line(run_dir, process)
    if last:
        return f"{last} (log: {log})"
    about_it = [text for text in messages_of(run_dir, WATCHDOG) if process in text]
    last = about_it[-1] if about_it else last_line(run_dir, WATCHDOG)
    nothing = "it has written nothing" if log.exists() else "it did not come as far as its own log"
    where = log_file(run_dir, WATCHDOG)
    return f"{nothing}; the watchdog says: {last or 'nothing'} (log: {where})"


def _tail(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - _READ_BYTES))
            return file.read(_READ_BYTES).decode(errors="replace")
    except OSError:
        return ""


def _messages(text: str) -> Iterator[str]:
    message, rest = "", ""
    for line in text.splitlines():
        record = _RECORD.fullmatch(line)
        if record is None:
            if message and line.strip():
                rest = line.strip()
            continue
        if message:
            yield _joined(message, rest)
        message = record[2] if record[1] in _LOUD else ""
        rest = ""
    if message:
        yield _joined(message, rest)


def _joined(message: str, rest: str) -> str:
    """A record with lines below it is one of an error. Its last line names the error."""
    return f"{message}: {rest}" if rest else message


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 1]}…"
