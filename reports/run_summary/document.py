"""`RunSummary` as JSON and back, and the file `summary.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from asys_bench.contracts.reporter import ReportError
from asys_bench.contracts.run_files import LOCKS, SUMMARY_FILE, SUMMARY_SCHEMA
from asys_bench.reports.run_summary.summary import FileEntry, RunSummary
from asys_bench.system.files import replace_file
from asys_bench.system.files.below import EntryKind, walk


def to_dict(summary: RunSummary) -> dict[str, Any]:
    """Plain data; the derived `balanced` and `dropped_total` are added for readers of the JSON."""
    data = {"schema": summary.schema, "balanced": summary.balanced, **asdict(summary)}
    if summary.bus is not None:
        data["bus"]["dropped_total"] = summary.bus.dropped_total
    return data


def to_json(summary: RunSummary) -> str:
    """Strict JSON (no NaN), indented, ending in a newline."""
    return json.dumps(to_dict(summary), indent=2, allow_nan=False) + "\n"


def from_dict(data: Any) -> RunSummary:
    """The inverse of `to_dict`.

    Raises:
        ReportError: no object, another schema, or fields that do not fit it.
    """
    if not isinstance(data, Mapping):
        raise ReportError(f"holds a {type(data).__name__}, no run summary")
    if data.get("schema") != SUMMARY_SCHEMA:
        raise ReportError(f"schema is {data.get('schema')!r}; this reads {SUMMARY_SCHEMA!r}")
    deleted = data.get("archive_deleted", ())
    if deleted is None:  # before deletions had reasons: max_gib, or nothing
        deleted = ()
    elif isinstance(deleted, Mapping):
        deleted = ({"reason": "budget", **deleted},)
    try:
        return TypeAdapter(RunSummary).validate_python({**data, "archive_deleted": deleted})
    except ValidationError as error:
        raise ReportError(f"not a run summary: {error}") from error


def write_json(summary: RunSummary, run_dir: Path) -> Path:
    """Write `<run_dir>/summary.json`, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    path = run_dir / SUMMARY_FILE
    replace_file(path, to_json(summary).encode(), sync=False)
    return path


def list_files(run_dir: Path) -> tuple[FileEntry, ...]:
    """Every regular file under `run_dir` with its size, sorted, but the run's locks; one that vanishes
    is left out."""
    found = []
    try:
        for path, kind in walk(run_dir):
            if kind is EntryKind.FILE:
                with suppress(FileNotFoundError):
                    relative = path.relative_to(run_dir).as_posix()
                    if relative not in LOCKS:
                        found.append(FileEntry(relative, path.stat().st_size))
    except OSError:
        pass  # what was found so far
    return tuple(sorted(found, key=lambda entry: entry.path.split("/")))
