"""Where the configuration meets the plugins: option models, by kind and name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import BaseModel

from asys_bench.contracts.bus import BusPlugin
from asys_bench.contracts.host import HostPlugin
from asys_bench.contracts.monitor import MonitorPlugin
from asys_bench.contracts.sink import SinkPlugin
from asys_bench.registry import PluginError, Registry, registry

if TYPE_CHECKING:
    from asys_bench.contracts.preprocessor import KernelPlugin

Registries = Callable[[str], Registry]
"""`asys_bench.registry.registry`, or a stand-in for it: kind -> registry."""

OptionPlugin: TypeAlias = "BusPlugin | HostPlugin | KernelPlugin | MonitorPlugin | SinkPlugin"

CONFIGURED_KINDS = ("backend", "host", "kernel", "monitor", "sink")
"""The plugin kinds that have options in a configuration."""


def options_model(kind: str, name: str, registries: Registries) -> type[BaseModel]:
    """The option model of the plugin `name`.

    Raises:
        PluginError: unknown name, or it does not load.
    """
    plugin: OptionPlugin = registries(kind).get(name, _type_of(kind))
    return plugin.options


def trains_saes(kind: object) -> bool:
    """Whether sinks of this kind train SAEs; one that is not installed here does not."""
    try:
        return registry("sink").get(str(kind), SinkPlugin).trains_saes
    except PluginError:
        return False


def _type_of(kind: str) -> type[Any]:
    if kind == "kernel":
        from asys_bench.contracts.preprocessor import KernelPlugin  # imports torch

        return KernelPlugin
    return {"backend": BusPlugin, "host": HostPlugin, "monitor": MonitorPlugin, "sink": SinkPlugin}[
        kind
    ]
