"""The `html` reporter: one file with plots that opens offline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asys_bench.contracts.reporter import ReporterPlugin, Subject
from asys_bench.reports.bench_findings.document import read
from asys_bench.reports.bench_html.page import render_html


def render(data: Mapping[str, Any]) -> str:
    """A complete HTML document.

    Raises:
        ReportError: the data is not a bench result.
    """
    return render_html(read(data))


plugin = ReporterPlugin(
    name="html",
    summary="one HTML file that opens offline: interval bars, percentile spectra, rounds, machine",
    subject=Subject.BENCH,
    media_type="text/html",
    suffix=".html",
    render=render,
)
