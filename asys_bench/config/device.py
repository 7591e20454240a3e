"""`device`: how activations leave a GPU."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from asys_bench.config.section import Integer, Section


class EncodeOn(StrEnum):
    """On which stream the encoder reads the host's tensor."""

    SIDE_STREAM = "side_stream"
    HOST_STREAM = "host_stream"


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
    encode_on: EncodeOn = Field(
        default=EncodeOn.HOST_STREAM,
        description="`host_stream`: the encoder runs between the host's kernels, at the speed of "
        "device memory, and keeps no reference; only the slow copy to the host's memory runs beside "
        "them. `side_stream`: the encoder runs beside them too and reads the tensor while the host "
        "goes on; a change in place is noticed by the tensor's version counter (that packet is "
        "dropped and the hook goes on as `host_stream`), but one by a kernel of the host's own that "
        "does not count versions is not",
    )

    @property
    def staging_bytes(self) -> int:
        return self.staging_mib << 20

    @property
    def buffer_bytes(self) -> int:
        return self.buffer_mib << 20
