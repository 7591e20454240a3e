"""`<run>/alarm/<worker>-<attempt>.<incarnation>.values.jsonl`: what the watchers of a run have seen.

A later run takes it as its baseline. The first line names the schema; `{"watcher": name, "number": n}`
comes before a watcher's first value; `[host step, v_0, v_1, ...]` are means over `EVERY` intervals, of the
step and of each watcher, null where it had no value.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from asys_bench.change.alarm.e_detector import Floats
from asys_bench.contracts.run_files import ALARM_DIR, ALARM_VALUES_SCHEMA
from asys_bench.system.files.append_file import AppendFile
from asys_bench.system.files.below import parse_json, scan_if_there, text_lines

log = logging.getLogger(__name__)
EVERY = 5
SUFFIX = ".values.jsonl"
_DIGITS = 7


class ValuesFile:
    """The writer. A disk that refuses a line loses it, and the watchers go on."""

    def __init__(self, path: Path) -> None:
        self._file = AppendFile(path)
        self._sums: Floats = np.zeros(0)
        self._counts: Floats = np.zeros(0)
        self._intervals = self._steps = 0
        self._said = False
        self._write({"schema": ALARM_VALUES_SCHEMA, "intervals": EVERY})

    def watch(self, name: str) -> None:
        """A watcher more."""
        self._write({"watcher": name, "number": len(self._sums)})
        self._sums, self._counts = np.append(self._sums, 0.0), np.append(self._counts, 0.0)

    def add(self, step: int, values_N: Floats) -> None:
        """One interval; NaN where a watcher had no value."""
        there = np.isfinite(values_N)
        self._sums[there] += values_N[there]
        self._counts += there
        self._intervals += 1
        self._steps += step
        if self._intervals >= EVERY:
            self.flush()

    def flush(self) -> None:
        """Write what has come together, if anything."""
        if self._counts.any():
            shown = [
                float(f"{total / n:.{_DIGITS}g}") if n else None
                for total, n in zip(self._sums.tolist(), self._counts.tolist(), strict=True)
            ]
            self._write([self._steps // self._intervals, *shown])
        self._sums[:], self._counts[:], self._intervals, self._steps = 0.0, 0.0, 0, 0

    def close(self) -> None:
        self._file.close()

    def _write(self, line: Any) -> None:
        try:
            self._file.write(json.dumps(line) + "\n")
        except OSError as error:
            if not self._said:
                log.error("%s: values are not kept: %s", self._file.path, error)
            self._said = True


class Baseline:
    """What the watchers of a clean run saw, by host step."""

    def __init__(self, curves: Mapping[str, tuple[Floats, Floats]]) -> None:
        self._curves = curves

    @classmethod
    def read(cls, run_dir: Path) -> Baseline:
        """Of all attempts; of lines that cannot be read nothing is taken.

        Raises:
            OSError: the run has no folder of alarms, or it leads out of the run.
        """
        points: dict[str, dict[int, float]] = {}
        for path, _ in sorted(scan_if_there(run_dir / ALARM_DIR, below=run_dir)):
            if not path.name.endswith(SUFFIX):
                continue
            names: dict[int, str] = {}
            for text in text_lines(path, below=run_dir):
                try:
                    line: Any = parse_json(text)
                except ValueError:
                    continue
                if isinstance(line, dict) and isinstance(line.get("watcher"), str):
                    names[len(names)] = line["watcher"]
                elif isinstance(line, list) and line and type(line[0]) is int:
                    for number, value in enumerate(line[1:]):
                        if isinstance(value, int | float) and math.isfinite(value):
                            points.setdefault(names.get(number, ""), {})[line[0]] = float(value)
        points.pop("", None)
        return cls(
            {
                name: (np.array(sorted(found), float), np.array([found[s] for s in sorted(found)]))
                for name, found in points.items()
            }
        )

    def __contains__(self, name: str) -> bool:
        return name in self._curves

    def at(self, name: str, step: int) -> float:
        """What the watcher saw at that host step, in a line between those that were kept; 0.0 for a watcher
        that the clean run did not have."""
        curve = self._curves.get(name)
        return 0.0 if curve is None else float(np.interp(step, *curve))
