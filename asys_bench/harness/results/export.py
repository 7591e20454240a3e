"""Results for other tools: CSV, and a JSON in which lower is always better, as asv wants it."""

from __future__ import annotations

import csv
import io
from typing import Any

from asys_bench.harness.results.result import Case, Result

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
