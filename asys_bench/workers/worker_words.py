"""What a worker said before it died or gave up, from its log: for errors, summaries and the terminal.

Its log is the one file that every worker writes, also one that dies while it attaches to the bus. A
message is the first line of a record of level WARNING or above; of a traceback the last line, which
names the error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

LOGS = "logs"
MOST_MESSAGES, MOST_CHARACTERS = 4, 500
_READ_BYTES = 256 << 10
_RECORD = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR|CRITICAL) (?:[\w.]+: )?(.*)"
)
_LOUD = ("WARNING", "ERROR", "CRITICAL")


def log_of(run_dir: Path, process: str) -> Path:
    """Where the log of a worker (or of the watchdog) is."""
    return run_dir / LOGS / f"{process}.log"


def words_of(run_dir: Path, process: str) -> list[str]:
    """The distinct warnings and errors in a process's log, the last few, oldest first; [] without."""
    found = dict.fromkeys(_shortened(words) for words in _messages(_tail(log_of(run_dir, process))))
    return list(found)[-MOST_MESSAGES:]


def last_line(run_dir: Path, process: str) -> str:
    """The last line of a process's log that says something; "" when there is none."""
    lines = [line.strip() for line in _tail(log_of(run_dir, process)).splitlines()]
    return _shortened(next((line for line in reversed(lines) if line), ""))


def epitaph(run_dir: Path, process: str) -> str:
    """The last words of a process with the log that has them: an existing file, never a wrong path."""
    log = log_of(run_dir, process)
    words = words_of(run_dir, process)
    said = words[-1] if words else last_line(run_dir, process)
    if said:
        return f"{said} (log: {log})"
    watchdog = [w for w in words_of(run_dir, "watchdog") if process in w]
    said = watchdog[-1] if watchdog else last_line(run_dir, "watchdog")
    nothing = "it has written nothing" if log.exists() else "it did not come as far as its own log"
    where = log_of(run_dir, "watchdog")
    return f"{nothing}; the watchdog says: {said or 'nothing'} (log: {where})"


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
            yield _told(message, rest)
        message = record[2] if record[1] in _LOUD else ""
        rest = ""
    if message:
        yield _told(message, rest)


def _told(message: str, rest: str) -> str:
    """A record with lines below it is one of an error, whose last line says what it was."""
    return f"{message}: {rest}" if rest else message


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 1]}…"
