"""Result files: written whole or not at all, after every round; read back and checked."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from asys_bench.harness.results.result import SCHEMA_ID, Case, Estimate, Result
from asys_bench.harness.results.result_run import Better
from asys_bench.reports.page.quantity import NOTHING, brief, with_interval
from asys_bench.system.files.atomic import replace_file

RESULT_FILE = "result.json"


class ResultError(ValueError):
    """The file is no result that this version reads; says why."""


def write_result(result: Result, path: Path) -> Path:
    """Write strict JSON (no NaN) atomically; a reader never sees half of it.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result.to_plain(), indent=1, allow_nan=False) + "\n"
    replace_file(path, text.encode(), sync=False, private=False)
    return path


def read_data(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON of a result file, or of `result.json` in a folder, with its schema checked.

    Raises:
        ResultError: it cannot be read or is of another schema.
    """
    file = Path(path)
    if file.is_dir():
        file /= RESULT_FILE
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ResultError(f"{file}: is not JSON: {error}") from None
    found = data.get("schema") if isinstance(data, dict) else None
    if found != SCHEMA_ID:
        raise ResultError(f"{file}: schema is {found!r}; this reads {SCHEMA_ID!r}")
    return dict(data)


def read_result(path: str | os.PathLike[str]) -> Result:
    """A result file as the model.

    Raises:
        ResultError: it cannot be read, or does not fit the schema.
    """
    data = read_data(path)
    try:
        return Result.model_validate(data)
    except ValidationError as error:
        raise ResultError(f"{path}: is not a result: {error}") from None


def json_schema() -> dict[str, Any]:
    """The published JSON Schema of asys.result/1."""
    return Result.model_json_schema(by_alias=True)


# Results for other tools: CSV, and a JSON in which lower is always better, as asv wants it.

_PER: dict[str, tuple[str, float]] = {
    "GB/s": ("ns per byte", 1.0),
    "1/s": ("ns per op", 1e9),
}
"""Unit of a rate -> (what one of it takes, numerator): ns/B = 1 / (GB/s), ns/op = 1e9 / (1/s)."""
_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
COLUMNS = ("case", "metric", "unit", "better", "stat", "value", "low", "high", "n", "rounds",
           "started", "commit", "machine")  # fmt: skip


def lower_is_better(value: float, unit: str) -> tuple[float, str] | None:
    """(value, unit) turned so that less is better; None when it has no such form."""
    if unit in _PER and value > 0:
        name, numerator = _PER[unit]
        return numerator / value, name
    if unit in _SECONDS:
        return value * _SECONDS[unit], "seconds"
    return None


def seconds_each(value: float, unit: str) -> float | None:
    """`lower_is_better` in seconds: per byte, per operation, or as it is."""
    turned = lower_is_better(value, unit)
    if turned is None:
        return None
    return turned[0] if turned[1] == "seconds" else turned[0] * 1e-9


def to_asv(result: Result) -> dict[str, Any]:
    """`{"commit", "machine", "results": {name: {"value", "unit", "samples", "version"}}}`."""
    found: dict[str, Any] = {}
    for case in result.cases:
        for name, metric in case.metrics.items():
            median = metric.stats.get("median")
            turned = lower_is_better(median.value, metric.unit) if median is not None else None
            if turned is None:
                continue
            found[f"{case.id}.{name}"] = {
                "value": turned[0],
                "unit": turned[1],
                "samples": _samples(case, name, metric.unit),
                "version": case.subject.pipeline_sha256 or case.family,
            }
    return {
        "schema": "asys.asv_export/1",
        "commit": result.run.commit,
        "started": result.run.started,
        "machine": result.machine.identity,
        "results": found,
    }


def to_csv(result: Result) -> str:
    """A row per case, metric and statistic."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for case in result.cases:
        for name, metric in case.metrics.items():
            for stat, estimate in metric.stats.items():
                low, high = (estimate.ci.low, estimate.ci.high) if estimate.ci else (None, None)
                writer.writerow(
                    [case.id, name, metric.unit, metric.better, stat, estimate.value, low, high,
                     metric.n, metric.rounds, result.run.started, result.run.commit or "",
                     result.machine.identity_sha256[:12]]
                )  # fmt: skip
    return text.getvalue()


def _samples(case: Case, name: str, unit: str) -> list[float]:
    medians = [r.values[name].median for r in case.rounds if name in r.values and not r.replaced]
    turned = [lower_is_better(m, unit) for m in medians if m is not None]
    return [value[0] for value in turned if value is not None]


# Two stored results side by side. They did not run interleaved, so there is no verdict in it.

SHOWN = ("median", "p99")
WARNING = (
    "not interleaved: the two ran at different times, so a difference may be the machine's. To judge "
    "it, run both sides now: `baseline: {python: ...}` in the suite and a target `k x baseline`."
)


@dataclass(frozen=True, slots=True)
class Row:
    case: str
    metric: str
    stat: str
    unit: str
    before: Estimate
    after: Estimate
    change: float
    """after / before - 1."""
    word: str
    """better | worse | within their intervals."""


def compare(before: Result, after: Result) -> list[Row]:
    """Every metric that both have, greatest change for the worse first."""
    old = {case.id: case for case in before.cases}
    rows = []
    for case in after.cases:
        for name, metric in case.metrics.items():
            earlier = old[case.id].metrics.get(name) if case.id in old else None
            for stat in SHOWN:
                a = earlier.stats.get(stat) if earlier is not None else None
                b = metric.stats.get(stat)
                if a is None or b is None or a.value == 0:
                    continue
                change = b.value / a.value - 1
                rows.append(Row(case.id, name, stat, metric.unit, a, b, change,
                                _word(a, b, metric.better)))  # fmt: skip
    order = {"worse": 0, "within their intervals": 1, "better": 2}
    return sorted(rows, key=lambda row: (order[row.word], -abs(row.change)))


def differences(before: Result, after: Result) -> list[str]:
    """Why the two may not be comparable at all."""
    found = [WARNING]
    if before.machine.identity_sha256 != after.machine.identity_sha256:
        keys = sorted({*before.machine.identity, *after.machine.identity})
        changed = [
            f"{key} {before.machine.identity.get(key)} -> {after.machine.identity.get(key)}"
            for key in keys
            if before.machine.identity.get(key) != after.machine.identity.get(key)
        ]
        found.append(f"different machines: {'; '.join(changed)}")
    if before.run.suite.sha256 != after.run.suite.sha256:
        found.append("different suites: cases with one id may not measure the same thing")
    return found


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that can be pasted in a pull request."""
    cells = [list(map(_escape, row)) for row in rows]
    widths = [max(len(line[i]) for line in [list(head), *cells]) for i in range(len(head))]

    def line(values: Sequence[str]) -> str:
        padded = (value.ljust(width) for value, width in zip(values, widths, strict=True))
        return "| " + " | ".join(padded) + " |"

    return "\n".join([line(head), line(["-" * width for width in widths]), *map(line, cells)])


def shown(estimate: Estimate | None) -> str:
    """`3.4 [3.1, 3.9]`."""
    if estimate is None:
        return NOTHING
    if estimate.ci is None:
        return brief(estimate.value)
    return with_interval(estimate.value, estimate.ci.low, estimate.ci.high)


def _word(before: Estimate, after: Estimate, better: Better) -> str:
    a, b = before.ci, after.ci
    if a is None or b is None or None in (a.low, a.high, b.low, b.high):
        return "within their intervals"
    assert a.low is not None
    assert a.high is not None
    assert b.low is not None
    assert b.high is not None
    if a.low <= b.high and b.low <= a.high:
        return "within their intervals"
    higher = b.low > a.high
    return "better" if higher == (better is Better.HIGHER) else "worse"


def _escape(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")
