"""`sinks`: the worker processes that consume packets."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from asys_bench.config.plugin_access import Registries
from asys_bench.config.sections.section import Integer, PluginName, Section, Text, as_list
from asys_bench.contracts.bus import Delivery
from asys_bench.contracts.sink import SinkOptions, SinkPlugin
from asys_bench.registry import registry


class SinkConfig(Section):
    """One consumer group and the workers in it."""

    kind: PluginName = Field(description="sink plugin (entry point group `asys.sink`)")
    enabled: bool = Field(default=True, description="false: checked but not started")
    workers: Integer = Field(default=1, ge=1, le=256, description="worker processes")
    delivery: Delivery | None = Field(
        default=None,
        description="what happens to packets whose reader died: lost and counted, or redelivered; "
        "null takes the plugin's default",
    )
    hooks: Annotated[tuple[Text, ...], BeforeValidator(as_list)] = Field(
        default=("*",),
        min_length=1,
        description="fnmatch globs over hook names that this sink receives",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="the plugin's options")

    def plugin(self, registries: Registries = registry) -> SinkPlugin:
        """The sink plugin. Raises PluginError if it is unknown or does not load."""
        return registries("sink").get(self.kind, SinkPlugin)

    def plugin_options(self, registries: Registries = registry) -> SinkOptions:
        """The options as the plugin's own model."""
        return self.plugin(registries).options.model_validate(self.options)

    def resolved_delivery(self, registries: Registries = registry) -> Delivery:
        """`delivery`, or the plugin's default."""
        return self.delivery or self.plugin(registries).default_delivery
