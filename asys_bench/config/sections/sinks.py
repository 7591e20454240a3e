"""`sinks`: the worker processes that consume packets."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from asys_bench.config.plugin_access import Registries
from asys_bench.config.sections.run import Integer, PluginName, Section, Text, as_list
from asys_bench.contracts.bus import Delivery
from asys_bench.contracts.host import HostOptions, HostPlugin
from asys_bench.contracts.monitor import MonitorOptions, MonitorPlugin
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


class MonitorConfig(Section):
    """An entry of `monitors`: what shows or exports the run's figures."""

    kind: PluginName = Field(description="monitor plugin (entry point group `asys.monitor`)")
    enabled: bool = Field(default=True, description="false: checked but not started")
    options: dict[str, Any] = Field(default_factory=dict, description="the plugin's options")

    def plugin(self, registries: Registries = registry) -> MonitorPlugin:
        """The monitor plugin. Raises PluginError if it is unknown or does not load."""
        return registries("monitor").get(self.kind, MonitorPlugin)

    def plugin_options(self, registries: Registries = registry) -> MonitorOptions:
        """The options as the plugin's own model."""
        return self.plugin(registries).options.model_validate(self.options)


class HostConfig(Section):
    """`host`: the plugin that runs the model under observation, and its options."""

    kind: PluginName = Field(description="host plugin (entry point group `asys.host`)")
    options: dict[PluginName, dict[str, Any]] = Field(
        default_factory=dict,
        description="options by host plugin name; those of `kind` are used, the others only checked",
    )
    checkpoint_every_steps: Integer | None = Field(
        default=None,
        ge=1,
        description="steps after which the host's own state is saved, at its next whole point (`ppo`: "
        "between two rollouts); null: only when it stops or ends in a run with `run.resume`. A host that "
        "cannot be saved says so",
    )

    keep_weights: bool = Field(
        default=False,
        description="a host that trains leaves the weights that it ends with in `<run>/host`, for "
        "`asys-run evaluate`",
    )

    def plugin(self, registries: Registries = registry) -> HostPlugin:
        """The chosen plugin. Raises PluginError if it is unknown or does not load."""
        return registries("host").get(self.kind, HostPlugin)

    def plugin_options(self, registries: Registries = registry) -> HostOptions:
        """The chosen plugin's options as its own model."""
        return self.plugin(registries).options.model_validate(self.options.get(self.kind, {}))
