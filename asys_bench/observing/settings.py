"""From what the user passed to `observe` to one checked configuration."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from asys_bench.config import LoadedConfig, MasterConfig, config_from_data, load_config
from asys_bench.config.assignment import assignment
from asys_bench.config.node import Node
from asys_bench.config.paths import Path as FieldPath
from asys_bench.config.sources import SHIPPED, read_layers
from asys_bench.observing.default_hooks import default_hooks

DEFAULTS = "profile_consumer.yaml"
"""The configuration of `observe(model)`."""
ConfigLike = str | os.PathLike[str] | Mapping[str, Any] | MasterConfig | None


def resolve_settings(
    config: ConfigLike, overrides: Mapping[str, Any], model: torch.nn.Module
) -> LoadedConfig:
    """The configuration of one observation, with the origin of each value where it has one.

    config: a YAML file or the name of a shipped one; a mapping, laid over the consumer defaults; a
    `MasterConfig`, taken as it is; None, the consumer defaults.
    overrides: by field, nested (`bus={"backend": "cpp_spmc"}`), dotted (`**{"bus.backend": ...}`) or
    with two underscores per level (`bus__backend=...`). `hooks` may be a glob or a list of globs.

    The host section says `observed`, the host's threads are left alone, and modules are chosen by
    `default_hooks` where nobody names any.

    Raises:
        ConfigError: everything that is wrong, each with its place and a fix.
        HookError: no hooks were given and the model suggests none.
    """
    if isinstance(config, MasterConfig):
        given = dict(_leaves((), _with_hook_rules(overrides), None))
        data = config.to_plain()
        for path, value in given.items():
            _put(data, path, value)
        return LoadedConfig(config_from_data(data, "observe()"), {}, ())
    name = DEFAULTS if config is None or isinstance(config, Mapping) else config
    root, _ = read_layers(name)
    given = dict(_leaves((), _with_hook_rules(overrides), root))
    if isinstance(config, Mapping):
        given = {**dict(_leaves((), _with_hook_rules(config), root)), **given}
    ours: dict[FieldPath, Any] = {
        ("host", "kind"): "observed",
        ("resources", "host_threads"): None,
        **dict.fromkeys(_talkative_monitors(root), 0),
    }
    if not _is_given(root, "run", "name"):
        ours["run", "name"] = _run_name(model)
    if not any(path[0] == "hooks" for path in given) and not _is_given(root, "hooks"):
        ours["hooks",] = [{"match": default_hooks(model)}]
    return load_config(name, [assignment(*item) for item in {**ours, **given}.items()])


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
