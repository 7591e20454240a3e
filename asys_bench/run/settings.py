"""From what the user passed to `observe` to one checked configuration."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from asys_bench.capture.points.default_hooks import default_hooks
from asys_bench.config import (
    ConfigError,
    LoadedConfig,
    MasterConfig,
    config_from_data,
    load_config,
)
from asys_bench.config.node import Node, plain_node
from asys_bench.config.paths import Path as FieldPath
from asys_bench.config.paths import assignment
from asys_bench.config.problems import Origin, Problem, did_you_mean
from asys_bench.config.sources import SHIPPED, read_layers

DEFAULTS = "profile_consumer.yaml"
"""The configuration of `observe(model)`."""
ConfigLike = str | os.PathLike[str] | Mapping[str, Any] | MasterConfig | None
HooksLike = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | None
SINKS_OF = {"sae": ("sae_trainer", "trainer"), "archive": ("archiver", "archive")}
"""Argument -> the kind of the sinks that it is about, and the name of one where there is none."""
OPTIONS_OF: dict[str, FieldPath] = {"sae": ("options", "sae"), "archive": ("options",)}
"""Argument -> where its options are in such a sink."""
_EXAMPLES = {
    "sae": 'sae={"k": 24, "architecture": "batchtopk"}',
    "archive": 'archive={"shard_rotate_mib": 64}',
}
_SUGAR = ("hooks", "eye", *SINKS_OF)
ARGUMENTS = (
    "config", "hooks", "sae", "archive", "eye", "tokenizer", "step_unit", "start_step", "optimizers",
    "one_call_per_step", "terminal", "distributed", "required", "quiet",
)  # fmt: skip
"""What `observe` takes beside the fields of a configuration."""
_CALL = "observe()"


def resolve_settings(
    config: ConfigLike,
    overrides: Mapping[str, Any],
    model: torch.nn.Module,
    optimizers: Iterable[torch.optim.Optimizer] = (),
) -> LoadedConfig:
    """The configuration of one observation, with the origin of each value where it has one.

    config: a YAML file or the name of a shipped one; a mapping, laid over the consumer defaults; a
    `MasterConfig`, taken as it is; None, the consumer defaults.
    overrides: by field, nested (`bus={"backend": "cpp_spmc"}`), dotted (`**{"bus.backend": ...}`) or
    with two underscores per level (`bus__backend=...`). `hooks` may be a glob or a list of globs; `sae`
    and `archive` are options of the sinks of their kind (`SINKS_OF`), True or False; `eye` is `run.eye`;
    None says nothing.
    optimizers: see `default_hooks`.

    The host section says `observed`, the host's threads are left alone, and modules are chosen by
    `default_hooks` where nobody names any.

    Raises:
        ConfigError: everything that is wrong, each with its place and a fix.
        HookError: no hooks were given and the model suggests none.
    """
    overrides = {key: v for key, v in overrides.items() if v is not None or key not in _SUGAR}
    if "eye" in overrides:
        overrides["run.eye"] = overrides.pop("eye")
    sugar = {key: overrides.pop(key) for key in SINKS_OF if key in overrides}
    _check_sugar(sugar)
    if isinstance(config, MasterConfig):
        data = config.to_plain()
        root = plain_node(data, Origin(_CALL))
        given = dict(_leaves((), _with_hook_rules(overrides), None))
        for path, value in (given | _of_sinks(sugar, root, given)).items():
            _put(data, path, value)
        with _arguments(sugar):
            return LoadedConfig(config_from_data(data, _CALL), {}, ())
    name = DEFAULTS if config is None or isinstance(config, Mapping) else config
    root, _ = read_layers(name)
    given = dict(_leaves((), _with_hook_rules(overrides), root))
    if isinstance(config, Mapping):
        given = {**dict(_leaves((), _with_hook_rules(config), root)), **given}
    given |= _of_sinks(sugar, root, given)
    ours: dict[FieldPath, Any] = {
        ("host", "kind"): "observed",
        ("resources", "host_threads"): None,
        **dict.fromkeys(_talkative_monitors(root), 0),
    }
    if not _is_given(root, "run", "name"):
        ours["run", "name"] = _run_name(model)
    if not any(path[0] == "hooks" for path in given) and not _is_given(root, "hooks"):
        ours["hooks",] = [{"match": default_hooks(model, optimizers)}]
    with _arguments(sugar):
        return load_config(name, [assignment(*item) for item in {**ours, **given}.items()])


def _check_sugar(sugar: Mapping[str, Any]) -> None:
    problems = [
        Problem.at(
            Origin(_CALL),
            "is a mapping of options, True or False",
            path=key,
            value=value,
            fix=f"see docs/config.md for the options: {_EXAMPLES[key]}",
        )
        for key, value in sugar.items()
        if not isinstance(value, Mapping | bool)
    ]
    if problems:
        raise ConfigError(problems)


def _of_sinks(
    sugar: Mapping[str, Any], root: Node, given: Mapping[FieldPath, Any]
) -> dict[FieldPath, Any]:
    """`sae` and `archive` as fields of the sinks that they are about."""
    found: dict[FieldPath, Any] = {}
    kinds = _kinds_of_sinks(root, given)
    for key, value in sugar.items():
        kind, usual_name = SINKS_OF[key]
        names = [name for name, known in kinds.items() if known == kind]
        if not names and value is not False:
            names = [usual_name]
            found["sinks", usual_name, "kind"] = kind
        for name in names:
            found["sinks", name, "enabled"] = value is not False
            if isinstance(value, Mapping):
                path = ("sinks", name, *OPTIONS_OF[key])
                below: Node | None = root
                for part in path:
                    below = below.child(part) if below is not None else None
                found |= {p: v for p, v in _leaves(path, value, below) if p != path}
    return found


def _kinds_of_sinks(root: Node, given: Mapping[FieldPath, Any]) -> dict[str, str]:
    """Name -> kind of the sinks that there will be, before `sae` and `archive` are looked at."""
    sinks = root.child("sinks")
    entries = sinks.content if sinks is not None and isinstance(sinks.content, dict) else {}
    kinds = {}
    for name, node in entries.items():
        kind = node.child("kind")
        if kind is not None:
            kinds[str(name)] = kind.content
    for path, value in given.items():
        match path:
            case ("sinks", str(name), "kind"):
                kinds[name] = value
            case ("sinks", str(name)) if value is None:
                kinds.pop(name, None)
    return kinds


@contextmanager
def _arguments(sugar: Mapping[str, Any]) -> Iterator[None]:
    """Problems in what was passed are said in the words of the call."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError([_of_argument(problem, sugar) for problem in error.problems]) from None


def _of_argument(problem: Problem, sugar: Mapping[str, Any]) -> Problem:
    path, parts = problem.path, problem.path.split(".")
    passed = problem.file.startswith(("--set ", _CALL))
    for key, value in sugar.items():
        place = OPTIONS_OF[key]
        start = 2 + len(place)
        if parts[0] == "sinks" and tuple(parts[2:start]) == place:
            whole = len(parts) == start and isinstance(
                value, Mapping
            )  # options that do not go together
            if passed or whole:
                return replace(
                    problem,
                    file=_CALL,
                    line=None,
                    column=None,
                    path=".".join([key, *parts[start:]]),
                )
    if not passed:
        return problem
    if len(parts) == 1 and problem.message.startswith("unknown key"):
        valid = sorted({*problem.valid, *ARGUMENTS})
        fix = did_you_mean(path, valid) or problem.fix
        return replace(problem, file=_CALL, valid=tuple(valid), fix=fix)
    return replace(problem, file=_CALL)


def _with_hook_rules(values: Mapping[str, Any]) -> dict[str, Any]:
    """`hooks="a"`, `hooks=["a", {...}]` as the list of rules that a file has."""
    found = dict(values)
    hooks = found.get("hooks")
    if isinstance(hooks, str | Mapping):
        hooks = [hooks]
    if isinstance(hooks, Sequence):
        found["hooks"] = [{"match": [rule]} if isinstance(rule, str) else rule for rule in hooks]
    return found


def _leaves(path: FieldPath, value: Any, below: Node | None) -> Iterator[tuple[FieldPath, Any]]:
    """Values with their paths; a mapping is gone into, a list is one value.

    below: what is there already; a mapping over a single value (`pinning: none`) replaces it whole.
    """
    held = below.content if below is not None else None
    replaces = bool(held) and not isinstance(held, dict)
    if isinstance(value, Mapping) and (value or not path) and not replaces:
        for key, inner in value.items():
            parts = str(key).replace("__", ".").split(".") if not path else [str(key)]
            node = below
            for part in parts:
                node = node.child(part) if node is not None else None
            yield from _leaves((*path, *parts), inner, node)
    else:
        yield path, _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def _put(data: dict[str, Any], path: FieldPath, value: Any) -> None:
    for part in path[:-1]:
        if not isinstance(data.get(str(part)), dict):
            data[str(part)] = {}
        data = data[str(part)]
    data[str(path[-1])] = value


def _is_given(root: Node, *path: str) -> bool:
    """Someone other than a shipped file says something there (those are about their own hosts)."""
    node: Node | None = root
    for part in path:
        node = node.child(part) if node is not None else None
    if node is None or not node.content:
        return False
    return not Path(node.origin.source).resolve().is_relative_to(SHIPPED.resolve())


def _run_name(model: torch.nn.Module) -> str:
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", type(model).__name__)[:64]
    return name if name[:1].isalnum() else "run"


def _talkative_monitors(root: Node) -> Iterator[FieldPath]:
    """Monitors that would print lines between those of the user's own script."""
    monitors = root.child("monitors")
    entries = monitors.content if monitors is not None else None
    for name, node in entries.items() if isinstance(entries, dict) else ():
        kind, options = node.child("kind"), node.child("options")
        if kind is None or kind.content != "logging_csv":
            continue
        if options is None or options.child("plain_interval_s") is None:
            yield ("monitors", name, "options", "plain_interval_s")
