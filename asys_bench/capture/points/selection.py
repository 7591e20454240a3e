"""Which tensor of what a module returns (or was called with) is captured.

Everything here is also traced by torch.compile, so it is plain: no exceptions for control, no
dispatch by table.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch

Path = tuple[int | str, ...]
"""Indices and names, outermost first: `hidden_states.3` is ("hidden_states", 3)."""

_SHOWN = 12


def parse_path(select: int | str | None) -> Path | None:
    """`hooks[].select` as a path; None (the first tensor found) for None."""
    if select is None:
        return None
    if isinstance(select, int):
        return (select,)
    return tuple(int(p) if p.lstrip("-").isdecimal() else p for p in select.split("."))


def select_tensor(value: Any, path: Path | None) -> torch.Tensor | None:
    """The tensor at `path` in `value`, or the first one there; None when there is none.

    A tensor is its own element 0, so that `select: 0` also fits a module that returns one tensor.
    """
    for index, part in enumerate(path or ()):
        if isinstance(value, torch.Tensor):
            return value if path == (0,) else None
        if isinstance(value, dict):
            rest = path[index:] if path is not None else ()
            whole = ".".join([str(name) for name in rest])
            if len(rest) > 1 and whole in value:  # a key with dots in it
                return first_tensor(value[whole])
            if part in value:
                value = value[part]
            elif isinstance(part, int) and -len(value) <= part < len(value):
                value = list(value.values())[part]  # as model outputs are indexed
            else:
                return None
        elif isinstance(part, int):
            if not isinstance(value, (tuple, list)) or not -len(value) <= part < len(value):
                return None
            value = value[part]
        else:
            value = getattr(value, part, None)
    return first_tensor(value)


def select_input(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], path: Path | None, names: Mapping[str, int]
) -> torch.Tensor | None:
    """As `select_tensor` for a call's arguments.

    names: parameter name -> position, so that `select: hidden_states` finds the argument however
    it was passed.
    """
    if path is None:
        found = first_tensor(args)
        return found if found is not None else first_tensor(dict(kwargs))
    head, rest = path[0], path[1:]
    if isinstance(head, str) and head in kwargs:
        return select_tensor(kwargs[head], rest or None)
    position = names.get(head) if isinstance(head, str) else head
    if position is None or not -len(args) <= position < len(args):
        return None
    return select_tensor(args[position], rest or None)


def first_tensor(value: Any) -> torch.Tensor | None:
    """The first tensor in `value`, depth first through tuples, lists, dicts and dataclasses."""
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, dict):
        value = list(value.values())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, (tuple, list)):
        for element in value:
            found = first_tensor(element)
            if found is not None:
                return found
    return None


def all_tensors(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in `value`, in the order of `first_tensor`."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for element in value.values():
            yield from all_tensors(element)
    elif isinstance(value, (tuple, list)):
        for element in value:
            yield from all_tensors(element)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from all_tensors(getattr(value, field.name))


def describe(value: Any, depth: int = 2) -> str:
    """What a selection had to choose from, for a log line: types, keys and shapes, no values."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    name = type(value).__name__
    if isinstance(value, dict):
        parts = [(str(key), element) for key, element in value.items()]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        parts = list(zip(getattr(value, "_fields"), value, strict=True))  # noqa: B009 - unknown to mypy
    elif isinstance(value, (tuple, list)):
        parts = [(str(index), element) for index, element in enumerate(value)]
    else:
        return name
    if depth == 0:
        return f"{name} of {len(parts)}"
    inside = ", ".join(f"{key}: {describe(v, depth - 1)}" for key, v in parts[:_SHOWN])
    return f"{name}({inside}{', ...' if len(parts) > _SHOWN else ''})"


def positions(module: torch.nn.Module) -> Mapping[str, int]:
    """Parameter name -> position in a call of `module`; empty when its forward has no signature."""
    try:
        parameters = inspect.signature(module.forward).parameters
    except (TypeError, ValueError):
        return {}
    return {name: index for index, name in enumerate(parameters)}


def passes_arguments_on(module: torch.nn.Module) -> bool:
    """Whether the forward of `module` takes any arguments by place, as wrappers do."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return True
    return any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)
