"""monitor.log: one JSON object per line, for `jq` and for people.

Every line has `time` (UTC, ISO 8601), `time_s` (since the run's start), `level` and `event`; the
rest depends on the event. `run_opened`, and `run_resumed` of a further attempt, hold the start's monotonic
time on the host's clock, by which a restarted monitor goes on with the same clock.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from asys_bench.monitors.changes import Change
from asys_bench.system.files.append_file import AppendFile
from asys_bench.system.files.below import parse_json, text_lines

OPENED = "run_opened"
RESUMED = "run_resumed"
REOPENED = "monitor_restarted"


class EventLog:
    """The file, with a lowest level; the opening lines are written at any level."""

    def __init__(self, path: Path, lowest: int = logging.INFO, attempt: int = 0) -> None:
        self._file = AppendFile(path)
        self._lowest, self._attempt = lowest, attempt
        self._opening = self._opening_line()
        self.resumed = self._opening is not None if attempt else self._file.resumed
        """A monitor of this attempt was killed."""

    def _opening_line(self) -> dict[str, Any] | None:
        """That of this attempt."""
        event = RESUMED if self._attempt else OPENED
        for line in text_lines(self._file.path):
            with suppress(ValueError, KeyError):
                found: Any = parse_json(line)
                ours = isinstance(found, dict) and found.get("attempt", 0) == self._attempt
                if ours and found["event"] == event:
                    return dict(found)
            if not self._attempt:  # it is the first line, or there is none
                break
        return None

    def started_ns(self) -> int | None:
        """The run's start (the host's CLOCK_MONOTONIC) as the first monitor of this attempt wrote it;
        None before that. A run that went on has one in which the time between two attempts counts."""
        found = self._opening.get("started_ns") if self._opening is not None else None
        return found if isinstance(found, int) else None

    def first_wall_s(self) -> float | None:
        """When the first attempt began, in seconds since the epoch."""
        with suppress(ValueError, AttributeError, KeyError, TypeError, StopIteration):
            line = parse_json(next(text_lines(self._file.path)))
            return datetime.fromisoformat(line["time"]).timestamp() - float(line["time_s"])
        return None

    def opened(self, time_s: float, wall_s: float, started_ns: int, run_id: str) -> None:
        """Write that this monitor took up the log."""
        event = REOPENED if self.resumed else RESUMED if self._attempt else OPENED
        fields: dict[str, object] = {"run_id": run_id, "started_ns": started_ns}
        if self._attempt:
            fields["attempt"] = self._attempt
        self._write(time_s, wall_s, Change(event, logging.INFO, fields))

    def write(self, time_s: float, wall_s: float, changes: Iterable[Change]) -> None:
        """Append a line per change at or above the lowest level."""
        for change in changes:
            if change.level >= self._lowest:
                self._write(time_s, wall_s, change)

    def _write(self, time_s: float, wall_s: float, change: Change) -> None:
        moment = datetime.fromtimestamp(wall_s, UTC).isoformat(timespec="milliseconds")
        record = {
            "time": moment,
            "time_s": round(time_s, 3),
            "level": logging.getLevelName(change.level).lower(),
            "event": change.event,
        }
        record |= {key: _finite(value) for key, value in change.fields.items()}
        self._file.write(json.dumps(record, allow_nan=False) + "\n")

    def close(self) -> None:
        self._file.close()


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0


@dataclass
class _Paused:
    next_try_s: float
    pause_s: float
    left_out: int = 0


class PausedOutputs:
    """By output name. Times are of a monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._paused: dict[str, _Paused] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._paused

    def skip(self, name: str, now_s: float) -> bool:
        """Whether a write is to be left out (and counts it), because its next attempt is not due."""
        paused = self._paused.get(name)
        if paused is None or now_s >= paused.next_try_s:
            return False
        paused.left_out += 1
        return True

    def refused(self, name: str, now_s: float) -> bool:
        """A write failed. True when that is news."""
        paused = self._paused.get(name)
        news = paused is None
        if paused is None:
            paused = self._paused[name] = _Paused(now_s, FIRST_PAUSE_S)
        else:
            paused.pause_s = min(2 * paused.pause_s, LONGEST_PAUSE_S)
        paused.next_try_s = now_s + paused.pause_s
        paused.left_out += 1
        return news

    def returned(self, name: str) -> int:
        """A write succeeded. How many were left out since it last did; 0: it was not paused."""
        paused = self._paused.pop(name, None)
        return paused.left_out if paused is not None else 0
