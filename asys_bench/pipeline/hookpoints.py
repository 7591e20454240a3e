"""Which modules and parameters are hooked: module-name globs resolved against a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

import torch

from asys_bench.config.hooks import HookConfig
from asys_bench.contracts.packet import Kind

_SUFFIX = {
    Kind.ACTIVATION: "",
    Kind.INPUT: ":input",
    Kind.GRADIENT: ":gradient",
    Kind.INPUT_GRADIENT: ":input_gradient",
    Kind.PARAMETER_GRADIENT: ":grad",
}
_COMPILED_WRAPPER = "_orig_mod"


class HookError(ValueError):
    """A glob matches nothing or there is nothing to capture; the message lists what is there."""


@dataclass(frozen=True)
class HookPoint:
    """One stream: a module, what is captured of it, and the configuration that asked for it.

    model: the whole model that is observed; None for a stream that is not part of it.
    parameter: of `module` (or of a module in it), for Kind.PARAMETER_GRADIENT.
    """

    name: str
    module: torch.nn.Module
    kind: Kind
    config: HookConfig
    model: torch.nn.Module | None = None
    parameter: torch.nn.Parameter | None = None


def resolve(model: torch.nn.Module, hooks: Sequence[HookConfig]) -> list[HookPoint]:
    """The hook points of `model`, in module order; the first configuration that matches wins.

    A module that occurs twice in the model has one stream, under its first name, and so has a
    parameter that is shared. Names are those of the model before torch.compile.

    Raises:
        HookError: a glob that matches no module (names close ones), or gradients of parameters
            asked of modules that have none.
    """
    modules = _modules(model)
    order = {name: index for index, name in enumerate(modules)}
    points: dict[str, HookPoint] = {}
    places: dict[str, tuple[int, int, int]] = {}
    shared: set[int] = set()
    for config in hooks:
        for pattern in config.match:
            matched = [name for name in modules if fnmatchcase(name, pattern)]
            if not matched:
                raise HookError(_no_match(pattern, list(modules), model))
            for capture in config.capture:
                kind = Kind[capture.name]
                found = [
                    point
                    for name in matched
                    for point in _points(name, modules[name], kind, config, model)
                ]
                if not found:
                    raise HookError(
                        f"hooks: match {pattern!r} captures {capture.value}, but none of the "
                        f"modules {', '.join(matched[:10])} has a parameter"
                    )
                for index, point in enumerate(found):
                    if point.parameter is not None and point.name not in points:
                        if id(point.parameter) in shared:
                            continue
                        shared.add(id(point.parameter))
                    points.setdefault(point.name, point)
                    owner = point.name.partition(":")[0]
                    if point.parameter is not None:
                        owner = owner.rpartition(".")[0]
                    places.setdefault(point.name, (order[owner], int(kind), index))
    return sorted(points.values(), key=lambda point: places[point.name])


def _modules(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Name -> module, without the root. A compiled module is its wrapper, whose hooks run eagerly."""
    modules: dict[str, torch.nn.Module] = {}
    for name, module in model.named_modules():
        parts = [part for part in name.split(".") if part != _COMPILED_WRAPPER]
        modules.setdefault(".".join(parts), module)
    modules.pop("", None)
    return modules


def _points(
    name: str, module: torch.nn.Module, kind: Kind, config: HookConfig, model: torch.nn.Module
) -> list[HookPoint]:
    suffix = _SUFFIX[kind]
    if kind is not Kind.PARAMETER_GRADIENT:
        return [HookPoint(name + suffix, module, kind, config, model)]
    points = []
    for inner, parameter in module.named_parameters():
        parts = [part for part in inner.split(".") if part != _COMPILED_WRAPPER]
        full = ".".join((name, *parts)) + suffix
        points.append(HookPoint(full, module, kind, config, model, parameter))
    return points


def _no_match(pattern: str, names: list[str], model: torch.nn.Module) -> str:
    close = get_close_matches(pattern, names, n=3, cutoff=0.5)
    hint = f"; did you mean {', '.join(map(repr, close))}?" if close else ""
    shown = ", ".join(names[:40]) + (f", ... ({len(names)} in all)" if len(names) > 40 else "")
    return f"hooks: match {pattern!r} matches no module of {type(model).__name__}{hint} Modules: {shown}"
