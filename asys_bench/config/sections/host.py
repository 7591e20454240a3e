"""`host`: what runs the model under observation."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from asys_bench.config.plugin_access import Registries
from asys_bench.config.sections.section import PluginName, Section
from asys_bench.contracts.host import HostOptions, HostPlugin
from asys_bench.registry import registry


class HostConfig(Section):
    """The host plugin and its options."""

    kind: PluginName = Field(description="host plugin (entry point group `asys.host`)")
    options: dict[PluginName, dict[str, Any]] = Field(
        default_factory=dict,
        description="options by host plugin name; those of `kind` are used, the others only checked",
    )

    def plugin(self, registries: Registries = registry) -> HostPlugin:
        """The chosen plugin. Raises PluginError if it is unknown or does not load."""
        return registries("host").get(self.kind, HostPlugin)

    def plugin_options(self, registries: Registries = registry) -> HostOptions:
        """The chosen plugin's options as its own model."""
        return self.plugin(registries).options.model_validate(self.options.get(self.kind, {}))
