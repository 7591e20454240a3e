"""`device`: how activations leave a GPU."""

from __future__ import annotations

from pydantic import Field

from asys_bench.config.sections.section import Integer, Section


class DeviceConfig(Section):
    """The path from a GPU to the bus; models on the CPU have none."""

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
