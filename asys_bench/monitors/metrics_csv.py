"""metrics.csv: every metric at every interval, in tidy long form (one value per row).

Columns: time_s, wall_time, slot, metric, hook, group, reason, labels, window, stat, value, attempt.

Long, because metrics appear while the run goes on (an SAE's loss exists only after its first step;
a new drop reason, a plugin's own counter), and a wide file's header cannot grow. It is what both
kinds of reader want first: a spreadsheet's pivot table takes it as it is, and in Python

    d = pandas.read_csv("metrics.csv")
    d[d.metric == "sae_loss"].pivot(index="time_s", columns="hook", values="value").plot()

The price is about 100 bytes per value (some 15 kB/s for 6 hooks at 1 Hz); raise `interval_s` for
runs of days. Names are the stats page's, except:

- the bus (slot "bus"): `data_bus_push_count` (packets offered), `data_bus_push_bytes`,
  `data_bus_drop_count` by reason, and per group `data_bus_delivered_count`, `_lost_count`,
  `_dead_lettered_count`, `_redelivered_count`, `_ready_count`, `_missed_count`;
- histograms in ns become `_ms` with a row per stat (p50, p90, p99, max, count), once for the
  interval since the previous rows and once for the run (`window`);
- `worker_state` (a WorkerState number), `worker_restarts`, `worker_heartbeat_age_s` of each slot.

Counters are totals of the attempt: where a run goes on (`run.resume`), the bus's and the host's begin at
0 again and those of the SAEs go on; time_s and wall_time go on. A value that is not a number is an empty
field.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from asys_bench.contracts.bus import BusAccount
from asys_bench.contracts.stats import HistogramSnapshot
from asys_bench.monitors.rates import EMPTY_HISTOGRAM, quantiles, subtract
from asys_bench.monitors.snapshot import PUBLISHED, MetricKey, RunSnapshot, SlotSnapshot
from asys_bench.system.files.append_file import TAIL_BYTES, AppendFile
from asys_bench.system.files.below import open_file

COLUMNS = (
    *("time_s", "wall_time", "slot", "metric", "hook"),
    *("group", "reason", "labels", "window", "stat", "value", "attempt"),
)
OLD_COLUMNS = COLUMNS[:-1]
"""Of files that were written before runs could go on: all is of attempt 0."""
OWN_COLUMNS = ("hook", "group", "reason")


class Row(NamedTuple):
    """One value; the time columns are added when it is written."""

    slot: str
    metric: str
    value: float
    labels: tuple[tuple[str, str], ...] = ()
    window: str = "run"
    stat: str = ""


def rows_of(now: RunSnapshot, before: RunSnapshot | None) -> Iterator[Row]:
    """Every value of a reading, and of the interval since `before`."""
    for name, slot in now.slots.items():
        yield Row(name, "worker_state", slot.state, window="now")
        yield Row(name, "worker_restarts", slot.restarts)
        yield Row(name, "worker_heartbeat_age_s", slot.heartbeat_age_s, window="now")
        for key, total in slot.counters.items():
            if not key.name.startswith(PUBLISHED):  # the bus's own rows say it
                yield Row(name, key.name, total, key.labels)
        for key, value in slot.gauges.items():
            yield Row(name, key.name, value, key.labels, window="now")
        earlier = before.slots.get(name) if before else None
        yield from _histogram_rows(slot, earlier)
    if now.account is not None:
        yield from _bus_rows(now.account)


def _histogram_rows(slot: SlotSnapshot, before: SlotSnapshot | None) -> Iterator[Row]:
    for key, histogram in slot.histograms.items():
        earlier = before.histograms.get(key, EMPTY_HISTOGRAM) if before else EMPTY_HISTOGRAM
        yield from _quantile_rows(slot.name, key, subtract(histogram, earlier), "interval")
        yield from _quantile_rows(slot.name, key, histogram, "run")


def _quantile_rows(
    slot: str, key: MetricKey, histogram: HistogramSnapshot, window: str
) -> Iterator[Row]:
    in_ns = key.name.endswith("_ns")
    name = key.name.removesuffix("_ns") + "_ms" if in_ns else key.name
    q = quantiles(histogram, 1e-6 if in_ns else 1.0)
    for stat in ("p50", "p90", "p99", "max", "count"):
        yield Row(slot, name, getattr(q, stat), key.labels, window, stat)


def _bus_rows(account: BusAccount) -> Iterator[Row]:
    yield Row("bus", "data_bus_push_count", account.produced)
    yield Row("bus", "data_bus_push_bytes", account.produced_bytes)
    for reason, n in account.dropped.items():
        yield Row("bus", "data_bus_drop_count", n, (("reason", str(reason)),))
    for g in account.groups:
        label = (("group", g.group),)
        yield Row("bus", "data_bus_delivered_count", g.delivered, label)
        yield Row("bus", "data_bus_lost_count", g.lost_in_flight, label)
        yield Row("bus", "data_bus_dead_lettered_count", g.dead_lettered, label)
        yield Row("bus", "data_bus_redelivered_count", g.redelivered, label)
        yield Row("bus", "data_bus_ready_count", g.ready, label, "now")
        yield Row("bus", "data_bus_missed_count", g.missed, label)


def last_times(path: Path) -> tuple[float, float]:
    """(time_s, wall time in seconds since the epoch) of the last whole row; zeros without one."""
    with suppress(ValueError, IndexError):
        time_s, wall_time, *_ = _last_lines(path)[-1].split(",")
        return float(time_s), datetime.fromisoformat(wall_time).timestamp()
    return 0.0, 0.0


def last_step(path: Path, attempt: int) -> int | None:
    """The host's step as an attempt's last reading has it; None where there is none near the end."""
    for line in reversed(_last_lines(path)):
        fields = line.split(",")
        if len(fields) == len(COLUMNS) and fields[2:4] == ["host", "host_steps"]:
            with suppress(ValueError):
                return int(fields[-2]) if fields[-1] == str(attempt) else None
    return None


def _last_lines(path: Path) -> list[str]:
    """The last whole lines, of at most `TAIL_BYTES`."""
    try:
        fd = open_file(path, below=path.parent)
        with os.fdopen(fd, "rb") as file:
            file.seek(max(0, os.fstat(fd).st_size - TAIL_BYTES))
            return file.read().decode(errors="replace").split("\n")[:-1]
    except (OSError, ValueError):
        return []


def value_text(value: float) -> str:
    """Integers as integers, floats with nine digits, nothing for NaN and infinity."""
    if isinstance(value, int):
        return str(int(value))
    return f"{value:.9g}" if math.isfinite(value) else ""


class MetricsCsv:
    """The file: a header when it is new, then blocks of rows; appended to after a restart."""

    def __init__(self, path: Path, attempt: int = 0) -> None:
        self._file = AppendFile(path)
        self._attempt = str(attempt)
        if not self._file.resumed:
            try:
                self._file.write(",".join(COLUMNS) + "\n")
            except OSError:
                self._file.close()
                raise

    def write(self, time_s: float, wall_s: float, rows: Iterable[Row]) -> None:
        """Append one block. `wall_s`: seconds since the epoch, written as UTC ISO 8601."""
        block = io.StringIO()
        writer = csv.writer(block, lineterminator="\n")
        moment = datetime.fromtimestamp(wall_s, UTC).isoformat(timespec="milliseconds")
        for row in rows:
            labels = dict(row.labels)
            own = [labels.pop(column, "") for column in OWN_COLUMNS]
            rest = ",".join(f"{key}={value}" for key, value in labels.items())
            head = (f"{time_s:.3f}", moment, row.slot, row.metric)
            value = value_text(row.value)
            writer.writerow((*head, *own, rest, row.window, row.stat, value, self._attempt))
        self._file.write(block.getvalue())

    def close(self) -> None:
        self._file.close()
