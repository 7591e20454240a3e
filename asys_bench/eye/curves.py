"""Curves over a run: of its SAEs, its host, and what was captured, from metrics.csv as far as it is written.

The file grows while the run goes on, to 100 bytes a value: it is read on from where it was left, only the
metrics that are shown are kept, and a series is thinned by half when it has `MOST_POINTS` points.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asys_bench.contracts.run_files import METRICS_FILE
from asys_bench.eye.watch import plain
from asys_bench.monitors.metrics_csv import COLUMNS, OLD_COLUMNS
from asys_bench.reports.run_report.series import Points, SeriesKey, rate, since_set, thin
from asys_bench.system.files.below import open_file

MOST_POINTS, SHOWN_POINTS = 8192, 240
MOST_SERIES, MOST_LINES = 2000, 12
_SLOT, _METRIC = COLUMNS.index("slot"), COLUMNS.index("metric")
CHUNK_BYTES = 4 << 20
MOST_AT_ONCE = 64 << 20
"""Bytes read for one answer: of a long run, the next answer goes on."""
_KEPT = frozenset(
    (
        *("host_steps", "hook_captured", "hook_sampling_rate", "data_bus_ready_count"),
        *("data_bus_drop_count", "sae_fvu", "sae_loss", "sae_l0", "sae_dead_ratio"),
        *("sae_rows_trained", "sae_input_drift", "sae_feature_survival_ratio"),
    )
)


@dataclass
class Curves:
    """The series of one run; `read_on` before they are asked for. Not for several threads at once."""

    run_dir: Path
    _series: dict[SeriesKey, list[tuple[float, float]]] = field(default_factory=dict)
    _offset: int = 0
    _inode: int = 0
    _columns: tuple[str, ...] = ()
    _rest: bytes = b""

    def read_on(self) -> None:
        """Take in what was written meanwhile; a file that was replaced is read anew."""
        try:
            fd = open_file(self.run_dir / METRICS_FILE, below=self.run_dir)
        except OSError:
            return
        with os.fdopen(fd, "rb") as file:
            status = os.fstat(fd)
            if status.st_ino != self._inode or status.st_size < self._offset:
                self._series, self._offset, self._rest, self._columns = {}, 0, b"", ()
                self._inode = status.st_ino
            file.seek(self._offset)
            left = MOST_AT_ONCE
            while left > 0 and (data := file.read(min(CHUNK_BYTES, left))):
                self._offset += len(data)
                left -= len(data)
                lines = (self._rest + data).split(b"\n")
                self._rest = lines.pop()[:CHUNK_BYTES]
                self._take(line.decode("utf-8", errors="replace") for line in lines)

    def _take(self, lines: Iterator[str]) -> None:
        try:
            for row in csv.reader(lines):
                if not self._columns:
                    self._columns = tuple(row)
                elif self._is_kept(row):
                    self._add(dict(zip(self._columns, row, strict=True)))
        except csv.Error:  # a field of more than 128 KiB: no monitor wrote it
            return

    def _is_kept(self, row: list[str]) -> bool:
        if self._columns not in (COLUMNS, OLD_COLUMNS) or len(row) != len(self._columns):
            return False
        metric = row[_METRIC]
        return metric in _KEPT or (metric.startswith("host_") and row[_SLOT] == "host")

    def _add(self, row: dict[str, str]) -> None:
        try:
            point = float(row["time_s"]), float(row["value"] or "nan")
        except ValueError:
            return
        if not math.isfinite(point[0]):
            return
        fields = ("slot", "metric", "hook", "group", "reason", "window", "stat")
        key = SeriesKey(*(row[name] for name in fields))
        if key not in self._series and len(self._series) >= MOST_SERIES:
            return
        points = self._series.setdefault(key, [])
        points.append(point)
        if len(points) > MOST_POINTS:
            del points[1:-1:2]

    def charts(self) -> list[dict[str, Any]]:
        """What the view *Run* draws: {title, unit, lines: [{name, x, y}]}, x in seconds of the run."""
        found = []
        for title, unit, metric, name, as_rate in _CHARTS:
            lines = self._lines(metric, name, as_rate)
            if lines:
                found.append({"title": title, "unit": unit, "lines": lines})
        for metric in self._host_figures():
            title = metric.removeprefix("host_").replace("_", " ")
            found.append({"title": title, "unit": "", "lines": self._lines(metric, "slot", False)})
        return found

    def saes(self) -> list[str]:
        """Names of the SAEs that have a figure, a hook's or a variant's."""
        keys = list(self._series)  # another thread may be reading on
        return list(dict.fromkeys(key.hook for key in keys if key.metric == "sae_loss"))

    def over_steps(self) -> list[dict[str, Any]]:
        """The host's own figures over its steps."""
        return [
            {
                "title": metric.removeprefix("host_").replace("_", " "),
                "unit": "",
                "lines": [self._drawn("host", self._at_steps(metric))],
            }
            for metric in self._host_figures()
        ]

    def _host_figures(self) -> list[str]:
        names = {
            key.metric
            for key in self._series
            if key.metric.startswith("host_") and key.metric != "host_steps" and not key.stat
        }
        return sorted(names, key=lambda name: ("reward" not in name, "loss" not in name, name))[:6]

    def _at_steps(self, metric: str) -> Points:
        steps = dict(self._points_of("host_steps"))
        return [(steps[at], value) for at, value in self._points_of(metric) if at in steps]

    def _points_of(self, metric: str) -> Points:
        return next((p for key, p in self._series.items() if key.metric == metric), [])

    def _lines(self, metric: str, name: str, as_rate: bool) -> list[dict[str, Any]]:
        keys = sorted(key for key in self._series if key.metric == metric and not key.stat)
        drawn = []
        for key in keys[:MOST_LINES]:
            points = self._series[key]
            told = str(getattr(key, name) or metric)
            drawn.append(self._drawn(told, rate(points) if as_rate else since_set(points)))
        return [line for line in drawn if line["x"]]

    @staticmethod
    def _drawn(name: str, points: Points) -> dict[str, Any]:
        shown = thin(points, SHOWN_POINTS)
        return {
            "name": name,
            "x": [plain(x, 7) for x, _ in shown],
            "y": [plain(y) for _, y in shown],
        }


_CHARTS = (
    ("Fraction of variance unexplained, held out", "", "sae_fvu", "hook", False),
    ("Training loss", "", "sae_loss", "hook", False),
    ("Dead features", "share", "sae_dead_ratio", "hook", False),
    ("Active features per row (L0)", "", "sae_l0", "hook", False),
    ("Trained", "rows/s", "sae_rows_trained", "hook", True),
    ("Host", "steps/s", "host_steps", "slot", True),
    ("Captured", "calls/s", "hook_captured", "hook", True),
    ("Sampling rate", "share", "hook_sampling_rate", "hook", False),
    ("Waiting on the bus", "packets", "data_bus_ready_count", "group", False),
    ("Dropped", "packets/s", "data_bus_drop_count", "reason", True),
)
"""Title, unit, metric, what names a line, whether a counter becomes a rate."""
