"""How a process that was handed a `LaunchSpec` attaches to the run's bus."""

from __future__ import annotations

from collections.abc import Sequence

from asys_bench.contracts.bus import BusClient, BusHandle, BusPlugin
from asys_bench.contracts.launch import LaunchSpec
from asys_bench.registry import registry


def attach_bus(launch: LaunchSpec, fds: Sequence[int]) -> BusClient:
    """The client of the run's bus; `fds` are the handle's descriptors in this process.

    Raises:
        BusError, PluginError: the bus is gone, or its backend does not load here.
    """
    handle = BusHandle.from_dict(launch.bus, fds)
    return registry("backend").get(handle.backend, BusPlugin).attach(handle)
