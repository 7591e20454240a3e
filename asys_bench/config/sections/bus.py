"""`bus`: how packets leave the host."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import Field

from asys_bench.config.plugin_access import Registries
from asys_bench.config.sections.run import Integer, Number, PluginName, Section
from asys_bench.contracts.bus import BusOptions, BusPlugin
from asys_bench.registry import registry


class OnFull(StrEnum):
    """What a hook does when the bus has no room."""

    DROP = "drop"
    SAMPLE = "sample"
    BLOCK = "block"


class BusConfig(Section):
    """The bus backend, its size and what happens when it is full."""

    backend: PluginName = Field(
        default="mp_queue", description="bus plugin (entry point group `asys.backend`)"
    )
    capacity_packets: Integer = Field(
        default=4096,
        ge=1,
        le=1 << 24,
        description="packets that one shard holds before it is full; "
        "a backend may round up to a power of two",
    )
    capacity_mib: Integer = Field(
        default=64,
        ge=1,
        le=1 << 20,
        description="payload that one shard holds before it is full, in MiB; taken at start",
    )
    checksum: bool = Field(default=False, description="store and verify a CRC-32C of every payload")
    on_full: OnFull = Field(
        default=OnFull.SAMPLE,
        description="when the bus is full: `drop` refuses and counts the packet, `sample` also "
        "lowers the hook's sampling rate, `block` makes the host wait (it changes host timing)",
    )
    block_timeout_s: Number = Field(
        default=1.0,
        gt=0,
        le=60,
        description="longest wait of the host for room in seconds; only for `on_full: block`",
    )
    options: dict[PluginName, dict[str, Any]] = Field(
        default_factory=dict,
        description="options by backend name; those of `backend` are used, the others only checked",
    )

    @property
    def capacity_bytes(self) -> int:
        return self.capacity_mib << 20

    def plugin(self, registries: Registries = registry) -> BusPlugin:
        """The chosen backend. Raises PluginError if it is unknown or does not load."""
        return registries("backend").get(self.backend, BusPlugin)

    def plugin_options(self, registries: Registries = registry) -> BusOptions:
        """The chosen backend's options as its own model."""
        return self.plugin(registries).options.model_validate(self.options.get(self.backend, {}))


class DeviceConfig(Section):
    """`device`: the path of activations from a GPU to the bus; models on the CPU have none."""

    staging_mib: Integer = Field(
        default=64,
        ge=1,
        le=1 << 14,
        description="page-locked host memory through which packets of all devices pass, in MiB; "
        "taken at start",
    )
    buffer_mib: Integer = Field(
        default=64,
        ge=1,
        le=1 << 14,
        description="memory on each device for encoded packets that are not copied yet, in MiB; "
        "taken at start",
    )
    max_in_flight: Integer = Field(
        default=64,
        ge=1,
        le=1024,
        description="packets between the hook and the bus; past that they are dropped and counted "
        "(or the host waits, with `on_full: block`)",
    )

    @property
    def staging_bytes(self) -> int:
        return self.staging_mib << 20

    @property
    def buffer_bytes(self) -> int:
        return self.buffer_mib << 20
