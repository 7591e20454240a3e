"""Which modules and parameters are hooked: module-name globs resolved against a model.

A stream is called as its module, with what is captured behind a colon. Module names may hold any
character. What does not print is escaped, because names go into files of lines and onto terminals. Two
streams can want one name ("x" captured as input, and the output of a module called "x:input"): the
later one gets "~2". Nobody takes a name apart; `HookPoint` has the parts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

import torch

from asys_bench.capture.points.rows import RowFinder, Rows
from asys_bench.capture.shards import part_of
from asys_bench.config.sections.hooks import HookConfig, Missing
from asys_bench.contracts.encodings.parts import Part
from asys_bench.contracts.names import SIDE_STREAMS, matches, printable, shortened
from asys_bench.contracts.packet import Kind
from asys_bench.contracts.torch_internals import name_unwrapped

_SUFFIX = {
    Kind.ACTIVATION: "",
    Kind.INPUT: ":input",
    Kind.GRADIENT: ":gradient",
    Kind.INPUT_GRADIENT: ":input_gradient",
    Kind.PARAMETER_GRADIENT: ":grad",
    Kind.PARAMETER: ":value",
    Kind.UPDATE: ":update",
}
OF_PARAMETERS = frozenset({Kind.PARAMETER_GRADIENT, Kind.PARAMETER, Kind.UPDATE})
"""Kinds that have a stream for each parameter."""
IN_ROUNDS = frozenset({Kind.PARAMETER, Kind.UPDATE})
"""Of these, what is captured every so many steps, some rows at a time."""
MOST_HOOKS = 2048
NAME_BYTES = 160
"""Longest name of a stream in UTF-8: what a bus's name table holds, less what others add to it."""

log = logging.getLogger(__name__)


class HookError(ValueError):
    """A glob matches nothing or there is nothing to capture; the message lists what is there.

    pattern: the glob that asked for it, where one did.
    """

    def __init__(self, message: str, pattern: str | None = None) -> None:
        super().__init__(message)
        self.pattern = pattern


@dataclass(frozen=True)
class HookPoint:
    """One stream: a module, what is captured of it, and the configuration that asked for it.

    name: of the stream, unique in the run. path: the module's name in the model (of a parameter, that of the
        module that holds it), empty for a stream that is not part of it.
    model: the whole model that is observed; None for a stream that is not part of it.
    parameter: of `module` (or of a module in it), for kinds of `OF_PARAMETERS`.
    rows: what a row is; None: what the last dimension holds.
    part: what this rank holds of a parameter that several ranks share; None: all of it.
    """

    name: str
    module: torch.nn.Module
    kind: Kind
    config: HookConfig
    model: torch.nn.Module | None = None
    parameter: torch.nn.Parameter | None = None
    path: str = ""
    rows: Rows | None = None
    part: Part | None = None


def resolve(model: torch.nn.Module, hooks: Sequence[HookConfig]) -> list[HookPoint]:
    """The hook points of `model`, in module order; the first configuration that matches wins.

    A module that occurs twice in the model has one stream, under its first name, and so has a
    parameter that is shared. Names are those of the model before torch.compile.

    Raises:
        HookError: a glob of a rule without `missing: ok` matches no module (names close ones), or
            parameters are asked of modules that have none.
    """
    modules = modules_by_name(model)
    order = {name: index for index, name in enumerate(modules)}
    points: dict[tuple[str, Kind, str], HookPoint] = {}
    places: dict[tuple[str, Kind, str], tuple[int, int, int]] = {}
    shared: set[tuple[int, Kind]] = set()
    most = (0, "")
    for config in hooks:
        for pattern in config.match:
            matched = [name for name in modules if matches(name, pattern)]
            if not matched and config.missing is Missing.OK:
                continue
            if not matched:
                raise HookError(_no_match(pattern, list(modules), model), pattern)
            most = max(most, (len(matched), pattern))
            for capture in config.capture:
                kind = Kind[capture.name]
                found = [
                    point
                    for name in matched
                    for point in _points(name, modules[name], kind, config, model)
                ]
                if not found and config.missing is Missing.OK:
                    continue
                if not found:
                    raise HookError(
                        f"hooks: match {pattern!r} captures {capture.value}, but none of the "
                        f"modules {', '.join(matched[:10])} has a parameter",
                        pattern,
                    )
                for index, point in enumerate(found):
                    key = (point.path, kind, point.name)
                    if point.parameter is not None and key not in points:
                        if (id(point.parameter), kind) in shared:
                            continue
                        shared.add((id(point.parameter), kind))
                    points.setdefault(key, point)
                    place = order.get(point.path, len(order))
                    places.setdefault(key, (place, int(kind), index))
    if len(points) > MOST_HOOKS:
        raise HookError(
            f"hooks: match {most[1]!r} matches {most[0]} modules, and all globs together make "
            f"{len(points)} hooks; a run has at most {MOST_HOOKS}. Name fewer modules, or fewer kinds of "
            "`capture`"
        )
    finder = RowFinder(model)
    return [
        _with_rows(point, finder)
        for point in _named(points[key] for key in sorted(points, key=lambda key: places[key]))
    ]


def _with_rows(point: HookPoint, finder: RowFinder) -> HookPoint:
    parameter = point.parameter
    if parameter is None:
        return replace(point, rows=finder.of_module(point.module, point.config.rows))
    rows = finder.of_parameter(parameter, point.module, point.config.rows)
    axis = rows.axis_of(tuple(parameter.shape))
    part = part_of(parameter, axis)
    if part is None and point.kind in IN_ROUNDS:
        sizes = list(parameter.shape)
        part = Part(None, tuple(sizes[:axis] + sizes[axis + 1 :] if axis >= 0 else sizes[:-1]), 0)
    return replace(point, rows=rows, part=part)


def unmatched(model: torch.nn.Module, hooks: Sequence[HookConfig]) -> list[str]:
    """Globs of rules with `missing: ok` that match no module of `model`."""
    patterns = [pattern for one in hooks if one.missing is Missing.OK for pattern in one.match]
    names = list(modules_by_name(model)) if patterns else []
    return [one for one in patterns if not any(matches(name, one) for name in names)]


def _named(points: Iterable[HookPoint]) -> list[HookPoint]:
    """The points under names that are short enough, print and are unique."""
    used = set(SIDE_STREAMS)
    named = []
    for point in points:
        name = wanted = shortened(printable(point.name), NAME_BYTES)
        number = 1
        while name in used:
            number += 1
            name = f"{wanted}~{number}"
        used.add(name)
        if name != point.name:
            log.warning(
                "hook %s of module %r is called %r in this run: its name is %s",
                point.kind.name.lower(),
                point.path,
                name,
                "taken" if number > 1 else f"longer than {NAME_BYTES} bytes, or does not print",
            )
        named.append(replace(point, name=name))
    return named


def modules_by_name(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Name before torch.compile -> module, without the root.

    A compiled module is its wrapper, whose hooks run eagerly."""
    modules: dict[str, torch.nn.Module] = {}
    for name, module in model.named_modules():
        modules.setdefault(name_unwrapped(name), module)
    modules.pop("", None)
    return modules


def _points(
    name: str, module: torch.nn.Module, kind: Kind, config: HookConfig, model: torch.nn.Module
) -> list[HookPoint]:
    suffix = _SUFFIX[kind]
    if kind not in OF_PARAMETERS:
        return [HookPoint(name + suffix, module, kind, config, model, path=name)]
    points = []
    for inner, parameter in module.named_parameters():
        parts = name_unwrapped(inner).split(".")
        full, owner = ".".join((name, *parts)) + suffix, ".".join((name, *parts[:-1]))
        points.append(HookPoint(full, module, kind, config, model, parameter, owner))
    return points


def _no_match(pattern: str, names: list[str], model: torch.nn.Module) -> str:
    close = get_close_matches(pattern, names, n=3, cutoff=0.5)
    hint = f"; did you mean {', '.join(map(repr, close))}?" if close else ""
    shown = ", ".join(names[:40]) + (f", ... ({len(names)} in all)" if len(names) > 40 else "")
    return f"hooks: match {pattern!r} matches no module of {type(model).__name__}{hint} Modules: {shown}"
