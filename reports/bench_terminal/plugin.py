"""The `terminal` reporter: the verdicts of a stored bench result, as at the end of the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asys_bench.contracts.reporter import ReporterPlugin, Subject
from asys_bench.reports.bench_findings.finding import read
from asys_bench.reports.bench_terminal.verdicts import render_text


def render(data: Mapping[str, Any]) -> str:
    """Plain text, 100 columns.

    Raises:
        ReportError: the data is not a bench result.
    """
    return render_text(read(data))


plugin = ReporterPlugin(
    name="terminal",
    summary="a line per target, worst first: value, interval, limit, margin, rounds still needed",
    subject=Subject.BENCH,
    media_type="text/plain",
    suffix=".txt",
    render=render,
)
