"""The root of the configuration: one frozen model that the whole run is made from."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from asys_bench.config.sections.bus import BusConfig
from asys_bench.config.sections.device import DeviceConfig
from asys_bench.config.sections.hooks import HookConfig
from asys_bench.config.sections.host import HostConfig
from asys_bench.config.sections.monitors import MonitorConfig
from asys_bench.config.sections.relations import violations
from asys_bench.config.sections.resources import ResourcesConfig
from asys_bench.config.sections.run import RunConfig, RunProfile
from asys_bench.config.sections.section import EntryName, Section
from asys_bench.config.sections.sinks import SinkConfig
from asys_bench.config.sections.watchdog import WatchdogConfig

SCHEMA_ID: Final = "asys.config/1"


def _without_removed(value: object) -> object:
    """An overlay removes an entry of an earlier file by setting it to null."""
    if isinstance(value, dict):
        return {name: entry for name, entry in value.items() if entry is not None}
    return value


class MasterConfig(Section):
    """Everything that a run is made from; `load_config` builds it from files and overrides."""

    schema_id: Literal["asys.config/1"] = Field(
        default=SCHEMA_ID, alias="schema", description="format of this file and its version"
    )
    run_profile: RunProfile = Field(
        default=RunProfile.CONSUMER,
        description="the machine this is meant for: `CONSUMER` (one desktop) or `HPC` (many cores)",
    )
    run: RunConfig = Field(
        default_factory=RunConfig, description="name, folder, seed and shutdown of the run"
    )
    host: HostConfig = Field(description="what runs the model under observation")
    hooks: tuple[HookConfig, ...] = Field(
        default=(),
        description="what is captured; a list, so an overlay replaces it as a whole",
    )
    device: DeviceConfig = Field(
        default_factory=DeviceConfig, description="how tensors of a GPU reach the bus"
    )
    bus: BusConfig = Field(default_factory=BusConfig, description="how packets leave the host")
    sinks: Annotated[dict[EntryName, SinkConfig], BeforeValidator(_without_removed)] = Field(
        default_factory=dict,
        description="consumers of packets by name; null removes one of an earlier file",
    )
    monitors: Annotated[dict[EntryName, MonitorConfig], BeforeValidator(_without_removed)] = Field(
        default_factory=dict,
        description="monitors by name; null removes one of an earlier file",
    )
    watchdog: WatchdogConfig = Field(
        default_factory=WatchdogConfig, description="supervision of worker processes"
    )
    resources: ResourcesConfig = Field(
        default_factory=ResourcesConfig, description="threads and priorities"
    )

    @model_validator(mode="after")
    def _relations_hold(self) -> Self:
        broken = violations({name: getattr(self, name) for name in type(self).model_fields})
        if broken:
            raise ValueError("; ".join(f"{'.'.join(map(str, v.path))} {v.message}" for v in broken))
        return self

    @property
    def enabled_sinks(self) -> dict[str, SinkConfig]:
        return {name: sink for name, sink in self.sinks.items() if sink.enabled}

    @property
    def enabled_monitors(self) -> dict[str, MonitorConfig]:
        return {name: monitor for name, monitor in self.monitors.items() if monitor.enabled}

    def to_plain(self) -> dict[str, Any]:
        """As plain JSON-able data, under the names that a file uses."""
        return self.model_dump(mode="json", by_alias=True)
