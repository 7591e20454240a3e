"""Relations between fields. Each names its sections, so that it is checked whenever those are valid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from asys_bench.config.sections.bus import BusConfig, OnFull
from asys_bench.config.sections.hooks import HookConfig
from asys_bench.config.sections.resources import CpuPriority, ResourcesConfig
from asys_bench.config.sections.run import RunConfig, WatchdogConfig
from asys_bench.config.sections.sinks import HostConfig, SinkConfig
from asys_bench.registry import PluginError

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Violation:
    """A relation that does not hold, shown at the field to change."""

    path: Path
    message: str
    value: object
    fix: str


def _watchdog(watchdog: WatchdogConfig) -> Iterator[Violation]:
    tick, beat = watchdog.tick_s, watchdog.heartbeat_timeout_s
    if beat <= 3 * tick:
        yield Violation(
            ("watchdog", "heartbeat_timeout_s"),
            f"must be more than 3 * watchdog.tick_s = {3 * tick:g} s, "
            "or one late tick looks like a dead worker",
            beat,
            f"set it above {3 * tick:g} or lower watchdog.tick_s",
        )
    if watchdog.startup_timeout_s < beat:
        yield Violation(
            ("watchdog", "startup_timeout_s"),
            f"must be at least watchdog.heartbeat_timeout_s = {beat:g} s",
            watchdog.startup_timeout_s,
            f"set it to {beat:g} or more",
        )
    if watchdog.backoff_max_s < watchdog.backoff_initial_s:
        yield Violation(
            ("watchdog", "backoff_max_s"),
            f"must be at least watchdog.backoff_initial_s = {watchdog.backoff_initial_s:g} s",
            watchdog.backoff_max_s,
            f"set it to {watchdog.backoff_initial_s:g} or more",
        )
    waits = sum(watchdog.backoff_s(n) for n in range(watchdog.restart_limit))
    if waits >= watchdog.restart_window_s:
        yield Violation(
            ("watchdog", "restart_window_s"),
            f"must be more than the {waits:g} s that the back-off of "
            f"{watchdog.restart_limit} restarts takes, or the limit is never reached",
            watchdog.restart_window_s,
            f"set it above {waits:g} or lower watchdog.backoff_max_s",
        )


def _drain(run: RunConfig, watchdog: WatchdogConfig) -> Iterator[Violation]:
    if run.drain_timeout_s <= watchdog.tick_s:
        yield Violation(
            ("run", "drain_timeout_s"),
            f"must be more than watchdog.tick_s = {watchdog.tick_s:g} s",
            run.drain_timeout_s,
            f"set it above {watchdog.tick_s:g}",
        )


def _block(run: RunConfig, bus: BusConfig) -> Iterator[Violation]:
    if bus.on_full is OnFull.BLOCK and bus.block_timeout_s >= run.drain_timeout_s:
        yield Violation(
            ("bus", "block_timeout_s"),
            f"must be less than run.drain_timeout_s = {run.drain_timeout_s:g} s, "
            "or a host waiting for room outlasts the shutdown",
            bus.block_timeout_s,
            f"set it below {run.drain_timeout_s:g}",
        )


def _sampling(hooks: tuple[HookConfig, ...]) -> Iterator[Violation]:
    for index, hook in enumerate(hooks):
        sampling, path = hook.sampling, ("hooks", index, "sampling")
        if sampling.min_rate > sampling.max_rate:
            yield Violation(
                (*path, "min_rate"),
                f"must be at most max_rate = {sampling.max_rate:g}",
                sampling.min_rate,
                f"set it to {sampling.max_rate:g} or less, or raise max_rate",
            )
        if sampling.low_watermark >= sampling.high_watermark:
            yield Violation(
                (*path, "low_watermark"),
                f"must be less than high_watermark = {sampling.high_watermark:g}",
                sampling.low_watermark,
                f"set it below {sampling.high_watermark:g}, or raise high_watermark",
            )


def _idle(resources: ResourcesConfig) -> Iterator[Violation]:
    if resources.worker_cpu is CpuPriority.IDLE and resources.pinning == "none":
        yield Violation(
            ("resources", "worker_cpu"),
            "needs workers that are pinned: on a shared CPU the kernel may put two threads of the "
            "host on one core and leave the other to an idle worker, which took three quarters of "
            "PPO's rate on two cores",
            resources.worker_cpu.value,
            "set resources.pinning to auto (or to a mapping), or worker_cpu to normal",
        )


def _something_to_consume(
    host: HostConfig, hooks: tuple[HookConfig, ...], sinks: Mapping[str, SinkConfig]
) -> Iterator[Violation]:
    enabled = [name for name, sink in sinks.items() if sink.enabled]
    if enabled and not hooks and not _feeds(host):
        yield Violation(
            ("hooks",),
            f"must not be empty while sinks are enabled ({', '.join(enabled)}): "
            "they would never receive a packet",
            [],
            'add a hook, for example `- match: "*policy_net"`, or set '
            + " and ".join(f"sinks.{name}.enabled" for name in enabled)
            + " to false",
        )


def _feeds(host: HostConfig) -> bool:
    try:
        return host.plugin().feeds
    except PluginError:
        return False  # which is said where the host is named


RELATIONS: tuple[tuple[tuple[str, ...], Callable[..., Iterator[Violation]]], ...] = (
    (("watchdog",), _watchdog),
    (("run", "watchdog"), _drain),
    (("run", "bus"), _block),
    (("hooks",), _sampling),
    (("resources",), _idle),
    (("host", "hooks", "sinks"), _something_to_consume),
)


def violations(sections: Mapping[str, Any]) -> list[Violation]:
    """Every relation that does not hold, among those whose sections are all present (valid)."""
    found: list[Violation] = []
    for names, check in RELATIONS:
        if all(name in sections for name in names):
            found += check(*(sections[name] for name in names))
    return found
