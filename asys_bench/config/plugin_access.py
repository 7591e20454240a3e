"""Where the configuration meets the plugins: option models, by kind and name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from asys_bench.contracts.bus import BusPlugin
from asys_bench.contracts.host import HostPlugin
from asys_bench.contracts.monitor import MonitorPlugin
from asys_bench.contracts.preprocessor import KernelPlugin
from asys_bench.contracts.sink import SinkPlugin
from asys_bench.registry import Registry

Registries = Callable[[str], Registry]
"""`asys_bench.registry.registry`, or a stand-in for it: kind -> registry."""

OptionPlugin = BusPlugin | HostPlugin | KernelPlugin | MonitorPlugin | SinkPlugin

_TYPE_OF: dict[str, type[Any]] = {
    "backend": BusPlugin,
    "host": HostPlugin,
    "kernel": KernelPlugin,
    "monitor": MonitorPlugin,
    "sink": SinkPlugin,
}
CONFIGURED_KINDS = tuple(_TYPE_OF)
"""The plugin kinds that have options in a configuration."""


def options_model(kind: str, name: str, registries: Registries) -> type[BaseModel]:
    """The option model of the plugin `name`.

    Raises:
        PluginError: unknown name, or it does not load.
    """
    plugin: OptionPlugin = registries(kind).get(name, _TYPE_OF[kind])
    return plugin.options
