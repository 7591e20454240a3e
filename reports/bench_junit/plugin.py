"""The `junit` reporter: a testcase per target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asys_bench.contracts.reporter import ReporterPlugin, Subject
from asys_bench.reports.bench_findings.document import read
from asys_bench.reports.bench_junit.suite import render_junit


def render(data: Mapping[str, Any]) -> str:
    """JUnit XML.

    Raises:
        ReportError: the data is not a bench result.
    """
    return render_junit(read(data))


plugin = ReporterPlugin(
    name="junit",
    summary="JUnit XML for CI systems: a testcase per target, with verdict, interval and reason",
    subject=Subject.BENCH,
    media_type="application/xml",
    suffix=".xml",
    render=render,
)
