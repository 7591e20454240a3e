"""From configuration to parts: the one factory that production runs and benchmarks share."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any

from asys_bench.config.schema import MasterConfig
from asys_bench.config.sections.bus import BusConfig
from asys_bench.config.sections.hooks import HookConfig
from asys_bench.config.sections.resources import CpuPriority
from asys_bench.config.sections.run import RunProfile
from asys_bench.contracts.bus import BaseDataBus, BusPlugin, BusRequest, GroupSpec
from asys_bench.contracts.chain import link, refusal
from asys_bench.contracts.launch import WorkerSpec
from asys_bench.contracts.monitor import BaseMonitor, MonitorOptions, MonitorPlugin
from asys_bench.contracts.names import matches
from asys_bench.contracts.preprocessor import Preprocessor
from asys_bench.contracts.sink import SinkPlugin
from asys_bench.registry import PluginError, registry

log = logging.getLogger(__name__)

FALLBACKS = {
    RunProfile.HPC: ("cpp_spmc", "numba_ring", "mp_queue"),
    RunProfile.CONSUMER: ("mp_queue",),
}
"""What stands in, in order, when the configured backend cannot run on this machine."""


UPLOADER = "uploader"
"""The worker that sends a run to its store; monitors' own are called `monitor-<name>`."""


class AssemblyError(RuntimeError):
    """The parts do not fit together; the message names the setting and the fix.

    path: the field to change, where it is one.
    """

    def __init__(self, message: str, path: tuple[str | int, ...] = ()) -> None:
        super().__init__(message)
        self.path = path


def choose_backend(config: BusConfig, profile: RunProfile) -> BusPlugin:
    """The configured backend, or the profile's next best with one loud line.

    Raises:
        AssemblyError: none can run here; gives every reason.
    """
    reasons = []
    for name in dict.fromkeys((config.backend, *FALLBACKS[profile])):
        try:
            plugin = registry("backend").get(name, BusPlugin)
        except PluginError as error:
            reasons.append(str(error))
            continue
        reason = plugin.unavailable()
        if reason is None:
            if reasons:
                log.warning("bus: using %s instead. %s", name, " ".join(reasons))
            return plugin
        reasons.append(f"{name}: {reason}")
    raise AssemblyError("bus.backend: no backend can run here. " + " ".join(reasons))


def create_data_bus(
    config: BusConfig,
    groups: Sequence[GroupSpec],
    *,
    profile: RunProfile = RunProfile.CONSUMER,
    names: Sequence[str] = (),
    shards: int = 1,
    source: int = 0,
) -> BaseDataBus:
    """The bus of a run; the caller owns and closes it.

    names: hook names to intern at start.

    Raises:
        AssemblyError: no backend can run here; BusError: memory or descriptors are short.
    """
    plugin = choose_backend(config, profile)
    options = plugin.options.model_validate(config.options.get(plugin.name, {}))
    request = BusRequest(
        groups=tuple(groups),
        shards=shards,
        source=source,
        capacity_packets=config.capacity_packets,
        capacity_bytes=config.capacity_bytes,
        checksum=config.checksum,
        names=tuple(names),
        options=options,
    )
    return plugin.build(request)


def create_monitor(plugin: MonitorPlugin, options: MonitorOptions) -> BaseMonitor:
    """A monitor of `plugin`.

    Raises:
        AssemblyError: it cannot run here; says why and the fix.
    """
    reason = plugin.unavailable()
    if reason is not None:
        raise AssemblyError(f"monitor {plugin.name!r} cannot run here: {reason}")
    return plugin.build(options)


def build_preprocessor(hook: HookConfig) -> Preprocessor:
    """The encoder of a hook: its one preprocessor, or the chain of several.

    Raises:
        AssemblyError: a chain that makes no sense, or a step that cannot run here; names the hook,
            the chain and the fix.
    """
    names = " -> ".join(step.name for step in hook.preprocess)
    where = f"the hook on {', '.join(hook.match)}: preprocess {names}"
    plugins = [step.plugin() for step in hook.preprocess]
    refused = refusal([(plugin.name, plugin.role) for plugin in plugins])
    if refused is not None:
        raise AssemblyError(f"{where} {refused[0]}; {refused[1]}")
    for plugin in plugins:
        reason = plugin.unavailable()
        if reason is not None:
            raise AssemblyError(f"{where}: {plugin.name!r} cannot run here: {reason}")
    steps = zip(plugins, hook.preprocess, strict=True)
    return link([plugin.build(step.plugin_options()) for plugin, step in steps])


def plan_workers(
    config: MasterConfig, hook_names: Sequence[str]
) -> tuple[list[GroupSpec], list[WorkerSpec]]:
    """Consumer groups and worker processes for these hooks.

    A partitioning sink (the SAE trainer) with several workers gets one group per worker, each with
    its own hooks; other sinks get one group whose members share the packets.

    Raises:
        AssemblyError: a sink's globs match no hook; lists the hooks. Or a sink that a run has once is there
            twice.
    """
    groups: list[GroupSpec] = []
    workers: list[WorkerSpec] = []
    resources = config.resources

    def add(
        name: str, role: Any, plugin: SinkPlugin | MonitorPlugin, options: Any, group: str = ""
    ) -> None:
        kind = f"asys.{role}"
        module = {e.module for e in entry_points(group=kind) if e.name == plugin.name}
        preload = (*module, *(plugin.preload if isinstance(plugin, SinkPlugin) else ()))
        workers.append(
            WorkerSpec(
                name=name,
                role=role,
                plugin=plugin.name,
                options=options,
                group=group,
                preload=preload,
                threads=resources.worker_threads,
                nice=resources.worker_nice,
                idle=role == "sink" and resources.worker_cpu is CpuPriority.IDLE,
            )
        )

    once: dict[str, str] = {}
    for name, sink in config.enabled_sinks.items():
        plugin = sink.plugin()
        if plugin.once and (other := once.setdefault(plugin.name, name)) != name:
            raise AssemblyError(
                f"sinks.{name}: a run has one sink {plugin.name!r} at the most, and sinks.{other} is one; "
                f"add its options there, or set sinks.{name}.enabled: false",
                ("sinks", name, "kind"),
            )
        reason = plugin.unavailable()
        if reason is not None:
            raise AssemblyError(f"sinks.{name}: {plugin.name!r} cannot run here: {reason}")
        wanted = [h for h in hook_names if any(matches(h, glob) for glob in sink.hooks)]
        if not wanted:
            raise AssemblyError(
                f"sinks.{name}.hooks: {list(sink.hooks)} match none of the hooks {list(hook_names)}",
                ("sinks", name, "hooks"),
            )
        delivery = sink.resolved_delivery()
        count = min(sink.workers, len(wanted)) if plugin.partition else sink.workers
        if plugin.partition and count > 1:
            for index in range(count):
                group = f"{name}-{index}"
                groups.append(GroupSpec(group, delivery, tuple(wanted[index::count])))
                add(f"{name}-{index}", "sink", plugin, sink.options, group)
        else:
            everything = len(wanted) == len(hook_names)
            groups.append(GroupSpec(name, delivery, None if everything else tuple(wanted)))
            for index in range(count):
                add(f"{name}-{index}", "sink", plugin, sink.options, name)
    for name, monitor in config.enabled_monitors.items():
        monitor_plugin = monitor.plugin()
        reason = monitor_plugin.unavailable()
        if reason is not None:
            log.warning("monitors.%s: left out: %s", name, reason)
            continue
        add(f"monitor-{name}", "monitor", monitor_plugin, monitor.options)
    if config.storage.uri is not None:
        uploader = registry("monitor").get("upload", MonitorPlugin)
        add(UPLOADER, "monitor", uploader, config.storage.model_dump())
    return groups, workers
