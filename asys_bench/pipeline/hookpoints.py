"""Which modules are hooked: module-name globs resolved against a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch

from asys_bench.config.hooks import HookConfig
from asys_bench.contracts.packet import Kind

_SUFFIX = {Kind.ACTIVATION: "", Kind.INPUT: ":input", Kind.GRADIENT: ":gradient"}


class HookError(ValueError):
    """A glob matches nothing or a selection does not exist; the message lists what is there."""


@dataclass(frozen=True)
class HookPoint:
    """One stream: a module, what is captured of it, and the configuration that asked for it."""

    name: str
    module: torch.nn.Module
    kind: Kind
    config: HookConfig


def resolve(model: torch.nn.Module, hooks: Sequence[HookConfig]) -> list[HookPoint]:
    """The hook points of `model`, in module order; the first configuration that matches wins.

    Raises:
        HookError: a glob that matches no module; names close ones.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    points: dict[str, HookPoint] = {}
    for config in hooks:
        for pattern in config.match:
            matched = [name for name in modules if fnmatchcase(name, pattern)]
            if not matched:
                raise HookError(_no_match(pattern, list(modules), model))
            for name in matched:
                for capture in config.capture:
                    kind = Kind[capture.name]
                    point = HookPoint(name + _SUFFIX[kind], modules[name], kind, config)
                    points.setdefault(point.name, point)
    order = {name: index for index, name in enumerate(modules)}
    return sorted(points.values(), key=lambda p: (order[p.name.partition(":")[0]], p.kind))


def _no_match(pattern: str, names: list[str], model: torch.nn.Module) -> str:
    close = get_close_matches(pattern, names, n=3, cutoff=0.5)
    hint = f"; did you mean {', '.join(map(repr, close))}?" if close else ""
    shown = ", ".join(names[:40]) + (f", ... ({len(names)} in all)" if len(names) > 40 else "")
    return f"hooks: match {pattern!r} matches no module of {type(model).__name__}{hint} Modules: {shown}"


def select_tensor(value: Any, select: int | str | None) -> torch.Tensor | None:
    """The tensor to capture out of a module's output (or its inputs).

    select: an index or key; None takes the tensor itself or the first one in a tuple, list or dict.
    Returns None when there is no tensor there; that call is skipped and counted.
    """
    if isinstance(value, torch.Tensor):
        return value if select is None or select == 0 else None
    if isinstance(value, dict):
        if select is not None:
            found = value.get(select)
            return found if isinstance(found, torch.Tensor) else None
        return next((v for v in value.values() if isinstance(v, torch.Tensor)), None)
    if isinstance(value, (tuple, list)):
        if isinstance(select, int):
            found = value[select] if -len(value) <= select < len(value) else None
            return found if isinstance(found, torch.Tensor) else None
        if isinstance(select, str):
            found = getattr(value, select, None)  # namedtuple
            return found if isinstance(found, torch.Tensor) else None
        return next((v for v in value if isinstance(v, torch.Tensor)), None)
    if isinstance(select, str):
        found = getattr(value, select, None)  # dataclass-like outputs
        return found if isinstance(found, torch.Tensor) else None
    return None
