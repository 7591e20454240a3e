"""What the kernel says of running processes, and where that differs from the plan.

Affinity is read twice, from sched_getaffinity(2) of every thread and from /proc/PID/status, because
either alone would be our own word for it. /proc/PID/numa_maps walks the page tables of the process
under its memory lock, so it is read on request only, never by a run.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from asys_bench.placement.apply import threads_of
from asys_bench.placement.plan import Plan
from asys_bench.system.cpu_lists import format_cpus, parse_cpus


@dataclass(frozen=True, slots=True)
class Reading:
    """One process as the kernel sees it."""

    pid: int
    allowed: frozenset[int]
    """Cpus_allowed_list of /proc/PID/status."""
    threads: Mapping[int, frozenset[int]]
    """Thread id -> affinity mask."""
    nice: int = 0
    policies: Mapping[str, int] = field(default_factory=dict)
    """Memory policy -> pages under it, from numa_maps."""
    pages: Mapping[int, int] = field(default_factory=dict)
    """NUMA node -> pages there."""


def read_process(pid: int, memory: bool = False) -> Reading | None:
    """Read a process; None when it is gone or not ours to look at.

    memory: also read numa_maps.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        nice = os.getpriority(os.PRIO_PROCESS, pid)
    except OSError:
        return None
    masks: dict[int, frozenset[int]] = {}
    for thread in threads_of(pid):
        try:
            masks[thread] = frozenset(os.sched_getaffinity(thread))
        except OSError:
            continue
    policies: Mapping[str, int] = {}
    pages: Mapping[int, int] = {}
    if memory:
        try:
            policies, pages = parse_numa_maps(Path(f"/proc/{pid}/numa_maps").read_text())
        except OSError:
            policies, pages = {}, {}
    return Reading(pid, allowed_cpus(status), masks, nice, policies, pages)


def allowed_cpus(status: str) -> frozenset[int]:
    """Cpus_allowed_list of a /proc/PID/status; empty when it is not there."""
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name == "Cpus_allowed_list":
            return parse_cpus(value)
    return frozenset()


def parse_numa_maps(text: str) -> tuple[dict[str, int], dict[int, int]]:
    """(policy -> pages, node -> pages) of a /proc/PID/numa_maps (numa(7))."""
    policies: Counter[str] = Counter()
    pages: Counter[int] = Counter()
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2:
            continue
        for word in words[2:]:
            name, _, value = word.partition("=")
            if name[:1] == "N" and name[1:].isdigit() and value.isdigit():
                policies[words[1]] += int(value)
                pages[int(name[1:])] += int(value)
    return dict(policies), dict(pages)


def differences(plan: Plan, readings: Mapping[str, Reading]) -> list[str]:
    """Where the kernel does not agree with the plan; empty when it does everywhere.

    Processes that the plan does not pin, or that are not running, are not judged.
    """
    found: list[str] = []
    for name, reading in readings.items():
        placement = plan.placement(name)
        if not placement.cpus:
            continue
        wanted = format_cpus(placement.cpus)
        if reading.allowed != placement.cpus:
            allowed = format_cpus(reading.allowed)
            found.append(f"{name} (pid {reading.pid}): planned {wanted}, status says {allowed}")
        for thread, mask in reading.threads.items():
            if mask != placement.cpus:
                found.append(
                    f"{name} thread {thread}: planned {wanted}, affinity is {format_cpus(mask)}"
                )
        preferred = f"prefer:{placement.node}"
        if placement.node is not None and reading.policies and preferred not in reading.policies:
            policies = ", ".join(sorted(reading.policies))
            found.append(f"{name}: planned memory policy {preferred}, numa_maps has {policies}")
    return found
