"""Files, environment and overrides -> one validated configuration, or every reason why not."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from asys_bench.config.diagnosis import diagnose, locate
from asys_bench.config.node import Node, plain_node
from asys_bench.config.overrides import apply_environment, apply_sets, trusted_environment
from asys_bench.config.paths import format_path
from asys_bench.config.plugin_access import Registries
from asys_bench.config.plugin_options import OptionCheck
from asys_bench.config.problems import ConfigError, Origin, Problem
from asys_bench.config.schema import MasterConfig
from asys_bench.config.sections.relations import violations
from asys_bench.config.sources import read_layers
from asys_bench.registry import registry


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A configuration and where its values came from."""

    config: MasterConfig
    provenance: Mapping[str, Origin]
    """Field path (`hooks[0].match`) -> origin, for every value that was given; defaults have none."""
    sources: tuple[Path, ...]
    """Files read, base first."""


def load_config(
    path: str | os.PathLike[str],
    sets: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    registries: Registries = registry,
) -> LoadedConfig:
    """Read `path` with what it extends, then `ASYS__...` variables, then `sets` (`path=value`).

    Plugin options come back with the plugins' defaults filled in.

    Raises:
        ConfigError: everything that is wrong, each with its place and a fix.
    """
    root, files = read_layers(path)
    problems = apply_environment(root, trusted_environment() if env is None else env)
    problems += apply_sets(root, sets)
    config = _validate(root, problems, registries)
    provenance = {format_path(path): node.origin for path, node in root.leaves()}
    return LoadedConfig(config, provenance, tuple(files))


def config_from_data(
    data: Mapping[str, Any], source: str = "data", registries: Registries = registry
) -> MasterConfig:
    """A configuration from plain data (a saved run, a suite), checked as a file is.

    Raises:
        ConfigError: everything that is wrong; `source` stands where a file's name would.
    """
    return _validate(plain_node(dict(data), Origin(source)), [], registries)


def _validate(root: Node, problems: list[Problem], registries: Registries) -> MasterConfig:
    data = root.to_data()
    config: MasterConfig | None = None
    sections: dict[str, Any] = {}
    try:
        config = MasterConfig.model_validate(data)
    except ValidationError as error:
        # A broken relation is reported below, at its own field.
        problems += [p for p in diagnose(error, MasterConfig, root) if p.path]
        sections = _valid_sections(data)
    for broken in violations(sections):
        _, origin = locate(root, broken.path)
        problems.append(
            Problem.at(
                origin,
                broken.message,
                path=format_path(broken.path),
                value=broken.value,
                fix=broken.fix,
            )
        )
    check = OptionCheck(root, registries)
    check.run()
    problems += check.problems
    if problems or config is None:
        raise ConfigError(problems)
    plain = config.to_plain()
    check.write_resolved(plain)
    return MasterConfig.model_validate(plain)


def _valid_sections(data: Mapping[str, Any]) -> dict[str, Any]:
    """The sections that are valid by themselves, so that relations between them can be checked."""
    valid: dict[str, Any] = {}
    for name, field in MasterConfig.model_fields.items():
        if name not in data:
            if not field.is_required():
                valid[name] = field.get_default(call_default_factory=True)
            continue
        value = data[name]
        if name in ("sinks", "monitors") and isinstance(value, dict):
            value = {key: entry for key, entry in value.items() if entry is not None}
        try:
            valid[name] = TypeAdapter[Any](field.annotation or Any).validate_python(value)
        except ValidationError:
            continue
    return valid
