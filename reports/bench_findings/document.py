"""A stored result as a `Result`, checked; and made safe to show."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from asys_bench.contracts.reporter import ReportError
from asys_bench.harness.results.result import SCHEMA_ID, Result

_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
"""Control characters, which move a terminal's cursor and are illegal in XML, and those that reorder
text: in a document they only serve to show something else than what is there."""


def read(data: Mapping[str, Any]) -> Result:
    """The result in `data`, as it lies in the result file.

    Raises:
        ReportError: another schema, or fields that do not fit it (NaN and infinity among them).
    """
    if data.get("schema") != SCHEMA_ID:
        raise ReportError(f"schema is {data.get('schema')!r}; this reads {SCHEMA_ID!r}")
    try:
        return Result.model_validate(dict(data))
    except ValidationError as error:
        raise ReportError(f"not a bench result: {error}") from error


def displayable(result: Result) -> Result:
    """The same result with every unprintable character of its texts replaced by U+FFFD."""
    return Result.model_validate(_clean(result.model_dump(by_alias=True)))


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return _UNPRINTABLE.sub("\ufffd", value.replace("\r\n", "\n"))
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(item) for item in value]
    return value
