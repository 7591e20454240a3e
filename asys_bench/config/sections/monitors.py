"""`monitors`: what shows and exports the run's figures."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from asys_bench.config.plugin_access import Registries
from asys_bench.config.sections.section import PluginName, Section
from asys_bench.contracts.monitor import MonitorOptions, MonitorPlugin
from asys_bench.registry import registry


class MonitorConfig(Section):
    """One monitor."""

    kind: PluginName = Field(description="monitor plugin (entry point group `asys.monitor`)")
    enabled: bool = Field(default=True, description="false: checked but not started")
    options: dict[str, Any] = Field(default_factory=dict, description="the plugin's options")

    def plugin(self, registries: Registries = registry) -> MonitorPlugin:
        """The monitor plugin. Raises PluginError if it is unknown or does not load."""
        return registries("monitor").get(self.kind, MonitorPlugin)

    def plugin_options(self, registries: Registries = registry) -> MonitorOptions:
        """The options as the plugin's own model."""
        return self.plugin(registries).options.model_validate(self.options)
