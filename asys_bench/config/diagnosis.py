"""pydantic's errors -> problems at the place in the file, with valid values and a fix."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from asys_bench.config.document import is_removed
from asys_bench.config.node import Node
from asys_bench.config.paths import Path, format_path
from asys_bench.config.problems import Origin, Problem, did_you_mean
from asys_bench.contracts.text_form import WRONG_FORM

_UNIONS = (Union, types.UnionType)


def diagnose(
    error: ValidationError, model: type[BaseModel], root: Node, prefix: Path = ()
) -> list[Problem]:
    """The problems in `error`, raised by `model` on the data under `prefix` of `root`."""
    by_path: dict[Path, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        path, extra = _path_in_data(detail, root, prefix)
        by_path.setdefault((*path, *extra), []).append(detail)
    return [_problem(path, details, model, root, prefix) for path, details in by_path.items()]


def locate(root: Node, path: Path) -> tuple[Node, Origin]:
    """The deepest existing node on `path`, and the origin to blame for `path`."""
    node = root
    for part in path:
        child = node.child(part)
        if child is None:
            break
        node = child
    return node, node.origin


def _path_in_data(detail: ErrorDetails, root: Node, prefix: Path) -> tuple[Path, Path]:
    """The error's location as far as the data goes; pydantic adds parts for union members."""
    node, _ = locate(root, prefix)
    path = prefix
    location: Sequence[str | int] = detail["loc"]
    if detail["type"] == "missing":
        location = location[:-1]
    for part in location:
        child = node.child(part)
        if child is not None:
            node, path = child, (*path, part)
    return path, (detail["loc"][-1],) if detail["type"] == "missing" else ()


def _problem(
    path: Path, details: list[ErrorDetails], model: type[BaseModel], root: Node, prefix: Path
) -> Problem:
    detail = details[0]
    shown = format_path(path)
    kind = detail["type"]
    node, origin = locate(root, path)
    if kind == "extra_forbidden":
        key = str(path[-1])
        valid = _keys(model, path[len(prefix) : -1])
        if len(path) == 1:
            valid = sorted([*valid, "extends"])
        if is_removed(shown):
            return Problem.at(
                node.key_origin or origin,
                f"`{key}` was an option of an earlier version",
                path=shown,
                fix="remove the line; CHANGELOG.md says what became of it",
            )
        return Problem.at(
            node.key_origin or origin,
            f"unknown key `{key}`",
            path=shown,
            fix=did_you_mean(key, valid) or "remove it or use one of the valid keys",
            valid=valid,
        )
    if kind == "missing":
        return Problem.at(
            node.key_origin or origin, "is missing", path=shown, fix=f"add `{path[-1]}: ...`"
        )
    expected = str((detail.get("ctx") or {}).get("expected", ""))
    valid = re.findall(r"'([^']*)'", expected) if kind in ("enum", "literal_error") else []
    messages = dict.fromkeys(_message(item) for item in details)
    value = node.content if not isinstance(node.content, dict | list) else node.to_data()
    return Problem.at(
        origin,
        "must be one of the valid words" if valid else " or ".join(messages),
        path=shown,
        value=value,
        fix=_fix(kind, value, valid, detail),
        valid=valid,
    )


def _message(detail: ErrorDetails) -> str:
    text = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return text[:1].lower() + text[1:]


def _fix(kind: str, value: object, valid: Sequence[str], detail: ErrorDetails) -> str:
    if valid:
        return did_you_mean(str(value), valid) or f"write one of: {', '.join(valid)}"
    if kind == "string_type" and value is not None and not isinstance(value, dict | list):
        return "put it in quotes if it is text"
    if kind == WRONG_FORM:
        return str((detail.get("ctx") or {}).get("fix", ""))
    if kind == "string_pattern_mismatch":
        return f"use text that matches {(detail.get('ctx') or {}).get('pattern')}"
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        return "indent its keys under it (`key: value` lines)"
    if kind in ("list_type", "tuple_type"):
        return "write a list: `[a, b]` or lines starting with `- `"
    if kind.startswith(("greater_than", "less_than")):
        return "choose a value inside the limit"
    return ""


def _keys(model: type[BaseModel], path: Path) -> list[str]:
    """The keys that the model at `path` inside `model` knows."""
    models: list[Any] = [model]
    for part in path:
        models = [inner for item in models for inner in _step(item, part)]
    return sorted({key for item in models for key in _names(item)})


def _names(item: object) -> list[str]:
    if isinstance(item, type) and issubclass(item, BaseModel):
        return [field.alias or name for name, field in item.model_fields.items()]
    return []


def _step(item: Any, part: str | int) -> list[Any]:
    """The types that `part` of a value of type `item` may have."""
    if isinstance(item, type) and issubclass(item, BaseModel):
        for name, field in item.model_fields.items():
            if part in (name, field.alias):
                return list(_members(field))
        return []
    arguments = [argument for argument in get_args(item) if argument is not Ellipsis]
    return list(_members(arguments[-1])) if arguments else []


def _members(annotation: Any) -> Iterator[Any]:
    """Through Annotated and unions, to the types themselves."""
    if isinstance(annotation, FieldInfo):
        annotation = annotation.annotation
    if get_origin(annotation) is Annotated:
        yield from _members(get_args(annotation)[0])
    elif get_origin(annotation) in _UNIONS:
        for member in get_args(annotation):
            yield from _members(member)
    else:
        yield annotation
