"""The `run_summary` reporter: a run's summary.json as the table printed at the end of the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asys_bench.contracts.reporter import ReporterPlugin, Subject
from asys_bench.reports.run_summary.document import from_dict
from asys_bench.reports.run_summary.terminal import render_text


def render(data: Mapping[str, Any]) -> str:
    """Plain text, 100 columns.

    Raises:
        ReportError: the data is not a run summary.
    """
    return render_text(from_dict(data))


plugin = ReporterPlugin(
    name="run_summary",
    summary="the table at the end of a run: packets, hooks, SAEs, workers, files, what to type next",
    subject=Subject.RUN,
    media_type="text/plain",
    suffix=".txt",
    render=render,
)
