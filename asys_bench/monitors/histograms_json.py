"""histograms.json: every histogram of a run's last reading, so that spectra can be drawn later.

    {"<slot>": {"<metric>": {"count": n, "sum": s, "max": m, "buckets": [[index, count], ...]}}}

Indices are those of `contracts.stats` (`bucket_upper` gives the edge); empty buckets are left out.
"""

from __future__ import annotations

from typing import Any

from asys_bench.contracts.stats import Histogram, StatsPage

FILE_NAME = "histograms.json"


def histograms(page: StatsPage) -> dict[str, Any]:
    """The document; slots without histograms are left out."""
    found: dict[str, Any] = {}
    for slot_name, slot in page.slots():
        for name, metric in slot.metrics().items():
            if isinstance(metric, Histogram):
                found.setdefault(slot_name, {})[name] = _one(metric)
    return found


def _one(metric: Histogram) -> dict[str, Any]:
    snapshot = metric.snapshot()
    filled = [[index, n] for index, n in enumerate(snapshot.buckets) if n]
    return {
        "count": snapshot.count,
        "sum": snapshot.total,
        "max": snapshot.maximum,
        "buckets": filled,
    }
