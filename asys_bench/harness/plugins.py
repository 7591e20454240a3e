"""Plugins that a suite names: entry points, or its own under `plugins`.

A suite's own plugin is `package.module:object`, or `folder/file.py:object` beside the suite. Files of one
folder may import each other relatively (`from .other import thing`).
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from asys_bench.contracts.bus import BusPlugin
from asys_bench.contracts.scenario import INTEGRITY_METRICS, MetricSpec, ScenarioPlugin
from asys_bench.registry import PluginError, registry


def is_file(place: str) -> bool:
    """Whether `place` names a file, not a module."""
    return place.partition(":")[0].endswith(".py")


def locate(place: str, folder: Path) -> str:
    """`place` with its file as an absolute path; a module's stays as it is.

    folder: the suite's; the file lies in it or below.

    Raises:
        PluginError: the file is outside, or is not there.
    """
    if not is_file(place):
        return place
    file, _, attribute = place.partition(":")
    path, folder = (folder / file).resolve(), folder.resolve()
    if not path.is_relative_to(folder):
        raise PluginError(f"{file!r} is not below the suite's folder, {folder}")
    if not path.is_file():
        raise PluginError(f"{file!r} is not in the suite's folder, {folder}")
    return f"{path}:{attribute}"


def register_extra(plugins: Mapping[str, Sequence[str]]) -> None:
    """Register the objects that the suite names (`locate` made paths of files absolute).

    Raises:
        PluginError: one cannot be imported; says which and why.
    """
    if "synthetic" not in registry("host").names():
        from asys_bench.hosts.synthetic import plugin as synthetic

        registry("host").register(synthetic)
    for kind, places in plugins.items():
        for place in places:
            registry(kind).register(_object(place))


def _object(place: str) -> Any:
    module, _, attribute = place.partition(":")
    try:
        imported = _of_file(Path(module)) if is_file(place) else importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - other people's code may fail in any way
        raise PluginError(f"{place!r} does not import: {type(error).__name__}: {error}") from None
    try:
        return getattr(imported, attribute)
    except AttributeError:
        raise PluginError(f"{place!r}: {module} has no {attribute!r}") from None


def _of_file(path: Path) -> ModuleType:
    """The module of a file, imported once; its folder is a package of a name that no other has."""
    folder = str(path.parent)
    package = f"asys_suite_{hashlib.sha256(folder.encode()).hexdigest()[:12]}"
    if package not in sys.modules:
        made = ModuleType(package)
        made.__path__ = [folder]
        sys.modules[package] = made
    return importlib.import_module(f"{package}.{path.stem}")


def scenario_plugin(name: str) -> ScenarioPlugin:
    """The scenario. Raises PluginError if it is unknown or does not load."""
    return registry("scenario").get(name, ScenarioPlugin)


def backend_plugin(name: str) -> BusPlugin:
    """The bus backend. Raises PluginError if it is unknown or does not load."""
    return registry("backend").get(name, BusPlugin)


def metrics_of(plugin: ScenarioPlugin) -> dict[str, MetricSpec]:
    """What the scenario measures, with the integrity counts of one that moves packets."""
    shared = {} if plugin.takes == "nothing" else INTEGRITY_METRICS
    return {**shared, **plugin.metrics}
