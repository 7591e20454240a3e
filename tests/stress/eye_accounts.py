"""Who takes the CPU, block by block: each process of a run, its eyepiece and its viewers."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from median_ratio import median_ratio

from asys_bench.contracts.stats import SlotField, StatsPage
from asys_bench.system.process_usage import process_usage

EYEPIECE, VIEWERS, REST = "eyepiece", "viewers", "others"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Block:
    """Some seconds of a run. Steps and rows per second; steps per CPU second of the host's thread.

    cpu: of each process the share of a core that it kept busy; REST: of the shared cores what is no process
    of these, such as the kernel's own work.
    """

    steps: float
    rows: float
    steps_per_cpu_s: float
    cpu: Mapping[str, float]

    @property
    def rows_per_cpu_s(self) -> float:
        return self.rows / max(1e-9, self.cpu["trainer-0"])


Quad = Sequence[Block]
"""Blocks without, with, with and without viewers."""


class Accounts:
    """CPU seconds since each process began. others: processes that are no worker, by name. cores: those
    that all but the host share."""

    def __init__(self, page: StatsPage, others: Mapping[str, int], cores: Sequence[int]) -> None:
        slots = {slot.get(SlotField.PID): name for name, slot in page.slots()}
        self._pids = {name: pid for pid, name in slots.items() if pid > 0} | dict(others)
        self.cores = cores

    def read(self) -> dict[str, float]:
        found = {name: (process_usage(pid) or (0.0, 0))[0] for name, pid in self._pids.items()}
        known = sum(seconds for name, seconds in found.items() if name != "host")
        return found | {REST: busy_s(self.cores) - known}


def busy_s(cores: Sequence[int]) -> float:
    """CPU seconds that these cores were busy (proc(5): user, nice, system, irq and softirq of /proc/stat)."""
    total = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name in {f"cpu{core}" for core in cores}:
            user, nice, system, _, _, irq, softirq = map(int, fields[:7])
            total += user + nice + system + irq + softirq
    return total / _TICKS_PER_S


def ratio(quads: Sequence[Quad], value: Callable[[Block], float]) -> dict[str, float]:
    """`value` with viewers over that without: the median over quads, with its 95 % bootstrap interval."""
    found = []
    for quad in quads:
        before, *looked, after = map(value, quad)
        found.append(sum(looked) / max(1e-9, before + after))
    return median_ratio(found)


def rows_beside_viewers(block: Block, cores: int) -> float:
    """Rows per second of what the viewers' own processes left of the cores."""
    return block.rows / (1.0 - block.cpu[VIEWERS] / cores)


def cpu_table(quads: Sequence[Quad]) -> dict[str, dict[str, float]]:
    """Per process the percent of a core without viewers, with them, and the difference."""
    table = {}
    for name in quads[0][0].cpu:
        off, on = (
            100 * statistics.mean(quad[at].cpu[name] for quad in quads for at in places)
            for places in ((0, 3), (1, 2))
        )
        if max(off, on) >= 0.05:
            table[name] = {"off": round(off, 2), "on": round(on, 2), "more": round(on - off, 2)}
    return table
