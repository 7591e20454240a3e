"""The `json` reporter: a bench result as canonical JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from asys_bench.contracts.reporter import ReporterPlugin, ReportError, Subject
from asys_bench.harness.results.result import Result
from asys_bench.reports.bench_findings.finding import read

SCALARS = (str, int, float, bool, type(None))


def to_json(result: Result) -> str:
    """Strict JSON (no NaN): `schema` first, then keys sorted, lists of numbers on one line.

    Raises:
        ReportError: a free-form part (the resolved suite, parameters) holds what JSON cannot.
    """
    try:
        data = result.to_plain()
        ordered = {"schema": data.pop("schema"), **dict(sorted(data.items()))}
        return _lines(ordered, "", sort=False) + "\n"
    except ValueError as error:
        raise ReportError(f"the result is not JSON: {error}") from error


def _lines(value: Any, indent: str, *, sort: bool = True) -> str:
    if not value or isinstance(value, SCALARS) or _is_row(value):
        return json.dumps(value, allow_nan=False, ensure_ascii=False)
    inner = indent + "  "
    if isinstance(value, dict):
        items = sorted(value.items()) if sort else value.items()
        parts = [
            f"{json.dumps(key, ensure_ascii=False)}: {_lines(item, inner)}" for key, item in items
        ]
    else:
        parts = [_lines(item, inner) for item in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    body = f",\n{inner}".join(parts)
    return f"{opening}\n{inner}{body}\n{indent}{closing}"


def _is_row(value: Any) -> bool:
    """A list of numbers, or of pairs of numbers (a histogram): thousands of lines otherwise."""
    if not isinstance(value, list):
        return False
    return all(
        isinstance(item, (int, float))
        or (isinstance(item, list) and all(isinstance(x, (int, float)) for x in item))
        for item in value
    )


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
