"""Result files: written whole or not at all, after every round; read back and checked."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from asys_bench.harness.results.result import SCHEMA_ID, Result

RESULT_FILE = "result.json"


class ResultError(ValueError):
    """The file is no result that this version reads; says why."""


def write_result(result: Result, path: Path) -> Path:
    """Write strict JSON (no NaN) atomically; a reader never sees half of it.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".json.partial")
    partial.write_text(
        json.dumps(result.to_plain(), indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    os.replace(partial, path)
    return path


def read_data(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON of a result file, or of `result.json` in a folder, with its schema checked.

    Raises:
        ResultError: it cannot be read or is of another schema.
    """
    file = Path(path)
    if file.is_dir():
        file /= RESULT_FILE
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ResultError(f"{file}: is not JSON: {error}") from None
    found = data.get("schema") if isinstance(data, dict) else None
    if found != SCHEMA_ID:
        raise ResultError(f"{file}: schema is {found!r}; this reads {SCHEMA_ID!r}")
    return dict(data)


def read_result(path: str | os.PathLike[str]) -> Result:
    """A result file as the model.

    Raises:
        ResultError: it cannot be read, or does not fit the schema.
    """
    data = read_data(path)
    try:
        return Result.model_validate(data)
    except ValidationError as error:
        raise ResultError(f"{path}: is not a result: {error}") from None


def json_schema() -> dict[str, Any]:
    """The published JSON Schema of asys.result/1."""
    return Result.model_json_schema(by_alias=True)
