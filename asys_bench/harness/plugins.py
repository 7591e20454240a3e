"""Plugins a suite names: entry points, or `package.module:object` of the suite's `plugins`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence

from asys_bench.contracts.bus import BusPlugin
from asys_bench.contracts.scenario import INTEGRITY_METRICS, MetricSpec, ScenarioPlugin
from asys_bench.registry import PluginError, registry


def register_extra(plugins: Mapping[str, Sequence[str]]) -> None:
    """Register the objects that the suite names.

    Raises:
        PluginError: one cannot be imported; says which and why.
    """
    if "synthetic" not in registry("host").names():
        from asys_bench.hosts.synthetic import plugin as synthetic

        registry("host").register(synthetic)
    for kind, places in plugins.items():
        for place in places:
            module, _, attribute = place.partition(":")
            try:
                found = getattr(importlib.import_module(module), attribute)
            except (ImportError, AttributeError) as error:
                raise PluginError(
                    f"{place!r} is no `package.module:object` here: {error}"
                ) from None
            registry(kind).register(found)


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
