"""The `markdown` reporter: a comment for a pull request or `$GITHUB_STEP_SUMMARY`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asys_bench.contracts.reporter import ReporterPlugin, Subject
from asys_bench.reports.bench_findings.document import read
from asys_bench.reports.bench_markdown.comment import render_markdown


def render(data: Mapping[str, Any]) -> str:
    """GitHub-flavoured Markdown.

    Raises:
        ReportError: the data is not a bench result.
    """
    return render_markdown(read(data))


plugin = ReporterPlugin(
    name="markdown",
    summary="Markdown for a pull request or $GITHUB_STEP_SUMMARY: targets, floor, checks, commands",
    subject=Subject.BENCH,
    media_type="text/markdown",
    suffix=".md",
    render=render,
)
