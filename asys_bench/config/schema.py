"""The root of the configuration: one frozen model that the whole run is made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, model_validator

from asys_bench.config.document import parse_document
from asys_bench.config.paths import format_path
from asys_bench.config.problems import Origin
from asys_bench.config.sections.bus import BusConfig, DeviceConfig
from asys_bench.config.sections.hooks import HookConfig, LabelsConfig
from asys_bench.config.sections.pool import PoolConfig
from asys_bench.config.sections.relations import violations
from asys_bench.config.sections.resources import ResourcesConfig
from asys_bench.config.sections.run import EntryName, RunConfig, RunProfile, Section, WatchdogConfig
from asys_bench.config.sections.sinks import HostConfig, MonitorConfig, SinkConfig
from asys_bench.config.sections.storage import StorageConfig

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
    labels: LabelsConfig = Field(
        default_factory=LabelsConfig, description="what the host says of its rows"
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
    storage: StorageConfig = Field(
        default_factory=StorageConfig, description="a copy of the run in an object store"
    )
    pool: PoolConfig = Field(
        default_factory=PoolConfig, description="receivers on a Ray cluster (`asys-run pool`)"
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


class _PlainDumper(yaml.SafeDumper):
    """SafeDumper without anchors, with list items indented under their key."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def dump_yaml(config: MasterConfig, provenance: Mapping[str, Origin] | None = None) -> str:
    """The whole configuration; loading the text gives an equal one.

    With `provenance` each value ends in a comment saying where it came from.
    """
    text = yaml.dump(
        config.to_plain(),
        Dumper=_PlainDumper,
        sort_keys=False,
        allow_unicode=False,  # U+0085 and its like would come back as line breaks
        default_flow_style=False,
        width=1 << 16,
    )
    return text if provenance is None else _annotate(text, provenance)


def config_sha256(config: MasterConfig) -> str:
    """Hex SHA-256 of the resolved configuration; equal configurations have equal ones."""
    canonical = json.dumps(config.to_plain(), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _annotate(text: str, provenance: Mapping[str, Origin]) -> str:
    tree = parse_document(text, "dump")
    lines = text.splitlines()
    for path, node in tree.leaves() if tree is not None else ():
        line = (node.origin.line or 1) - 1
        if "\n" in str(node.content):  # a comment inside a multi-line value would become part of it
            continue
        origin = provenance.get(format_path(path))
        lines[line] += f"  # {_one_line(origin) if origin is not None else 'default'}"
    return "\n".join(lines) + "\n"


def _one_line(origin: Origin) -> str:
    return " ".join(str(origin).split())
