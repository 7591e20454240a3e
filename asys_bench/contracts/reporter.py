"""The reporter: turns the data of a finished run or bench into a document.

- Pure: the same data gives the same text. A reporter measures nothing, times nothing, reads no
  shared memory and writes no file; whoever calls it does.
- Its input is plain data as it lies in the result file (`<run_dir>/summary.json`, the bench's
  result), so that any reporter can be run again later, elsewhere, on a stored result.
- It reads the data's `schema` and refuses one that it does not know, instead of guessing.
- What is unknown is shown as unknown, never as zero; what failed comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Subject(StrEnum):
    """What a reporter reports on."""

    RUN = "run"
    """The summary of one `asys-run`."""
    BENCH = "bench"
    """The result of one `asys-bench run`."""


class ReportError(ValueError):
    """The data is not of a schema that this reporter knows; names the one found and those known."""


@dataclass(frozen=True)
class ReporterPlugin:
    """What a reporter exports as `plugin` (entry point group `asys.reporter`)."""

    name: str
    summary: str
    subject: Subject
    media_type: str
    """Of the document: "text/plain", "application/json", "text/html", "text/markdown"."""
    suffix: str
    """Of a file holding the document, with its dot: ".txt"."""
    render: Callable[[Mapping[str, Any]], str]
    """Result data -> document. Raises ReportError for data it does not know."""
    unavailable: Callable[[], str | None] = lambda: None
    """A reason why it cannot run here (with the fix), or None."""
