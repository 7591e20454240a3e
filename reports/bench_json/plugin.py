"""The `json` reporter: a bench result as canonical JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asys_bench.contracts.reporter import ReporterPlugin, Subject
from asys_bench.reports.bench_findings.document import read
from asys_bench.reports.bench_json.canonical import to_json


def render(data: Mapping[str, Any]) -> str:
    """The result again, checked, in its canonical form.

    Raises:
        ReportError: the data is not a bench result.
    """
    return to_json(read(data))


plugin = ReporterPlugin(
    name="json",
    summary="the bench result as canonical JSON: checked, sorted, no NaN, to store and to diff",
    subject=Subject.BENCH,
    media_type="application/json",
    suffix=".json",
    render=render,
)
