"""The machine as the kernel describes it in /sys and /proc. Missing files mean "unknown", not errors.

Read from: /sys/devices/system/cpu/{online,cpuN/topology/*}, /sys/devices/system/node/nodeN/*,
the process's cgroup (v2: cpuset.cpus.effective, cpuset.mems.effective, cpu.max; v1: the same by
their older names) and the affinity mask of the calling process.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from asys_bench.system.cpu_lists import parse_cpus
from asys_bench.system.gpus import GpuCard, read_gpus


@dataclass(frozen=True, slots=True, order=True)
class Core:
    """One physical core with its hardware threads (one CPU, or several with SMT)."""

    node: int
    package: int
    cpus: tuple[int, ...]
    """Ascending; those that are online, usable or not."""


@dataclass(frozen=True, slots=True)
class Topology:
    """Cores of the machine and what this process may use of them.

    usable: CPUs in the affinity mask and in the cgroup's cpuset.
    memory_bytes: NUMA node -> memory in bytes, for nodes that have any.
    quota_cpus: CPU time per second that the cgroup allows, in CPUs; None without a limit.
    """

    cores: tuple[Core, ...]
    usable: frozenset[int]
    memory_bytes: dict[int, int] = field(default_factory=dict)
    usable_nodes: frozenset[int] | None = None
    """Nodes whose memory the cpuset allows; None when nothing restricts it."""
    quota_cpus: float | None = None
    gpus: tuple[GpuCard, ...] = ()

    @property
    def nodes(self) -> tuple[int, ...]:
        """NUMA nodes with CPUs or memory, ascending."""
        return tuple(sorted({core.node for core in self.cores} | set(self.memory_bytes)))

    @property
    def usable_cores(self) -> tuple[Core, ...]:
        """Cores of which at least one CPU is usable, with just those CPUs."""
        trimmed = (
            Core(c.node, c.package, tuple(cpu for cpu in c.cpus if cpu in self.usable))
            for c in self.cores
        )
        return tuple(sorted(core for core in trimmed if core.cpus))

    def nodes_of(self, cpus: Iterable[int]) -> frozenset[int]:
        """The NUMA nodes that these CPUs are on."""
        wanted = set(cpus)
        return frozenset(core.node for core in self.cores if wanted.intersection(core.cpus))

    def binds(self, node: int) -> bool:
        """The node has memory and this process may take it."""
        allowed = self.usable_nodes is None or node in self.usable_nodes
        return allowed and self.memory_bytes.get(node, 0) > 0


def read_topology(root: Path = Path("/"), affinity: Iterable[int] | None = None) -> Topology:
    """The topology under `root` (a copy of /sys and /proc in tests).

    affinity: CPUs the process may run on; None asks the kernel.
    """
    allowed = frozenset(os.sched_getaffinity(0) if affinity is None else affinity)
    base = root / "sys/devices/system"
    online = _cpu_list(base / "cpu/online") or allowed
    node_of, memory = _nodes(base / "node")
    cores: dict[tuple[int, ...], Core] = {}
    for cpu in sorted(online):
        folder = base / f"cpu/cpu{cpu}/topology"
        siblings = (
            _cpu_list(folder / "core_cpus_list")
            or _cpu_list(folder / "thread_siblings_list")
            or frozenset({cpu})
        )
        cpus = tuple(sorted((siblings & online) | {cpu}))
        package = _integer(folder / "physical_package_id", 0)
        cores.setdefault(cpus, Core(node_of.get(cpu, 0), max(package, 0), cpus))
    groups = cgroup_folders(root)
    cpuset = _first_list(groups, ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"))
    mems = _first_list(groups, ("cpuset.mems.effective", "cpuset.effective_mems", "cpuset.mems"))
    usable = allowed & online
    if cpuset and usable & cpuset:
        usable &= cpuset
    gpus = read_gpus(root)
    return Topology(tuple(sorted(cores.values())), usable, memory, mems, _quota(groups), gpus)


def _nodes(base: Path) -> tuple[dict[int, int], dict[int, int]]:
    """(CPU -> node, node -> bytes of memory)."""
    node_of: dict[int, int] = {}
    memory: dict[int, int] = {}
    for folder in base.glob("node[0-9]*"):
        node = int(folder.name.removeprefix("node"))
        for cpu in _cpu_list(folder / "cpulist") or ():
            node_of[cpu] = node
        for line in (_text(folder / "meminfo") or "").splitlines():
            words = line.split()
            if "MemTotal:" in words and words[-1] == "kB" and words[-2].isdigit():
                memory[node] = int(words[-2]) * 1024
    return node_of, memory


def cgroup_folders(root: Path = Path("/")) -> list[Path]:
    """Folders of the process's cgroups, innermost first, so that the tightest answer comes first."""
    found: list[Path] = []
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3:
            continue
        for base in ("", *(name for name in parts[1].split(",") if name)):
            mount = root / "sys/fs/cgroup" / base
            folder = mount / parts[2].lstrip("/")
            # Inside a container the path is the host's while the mount shows our own group.
            found += [path for path in (folder, mount) if path.is_dir()]
    return list(dict.fromkeys(found))


def _first_list(groups: list[Path], names: tuple[str, ...]) -> frozenset[int] | None:
    for folder in groups:
        for name in names:
            if cpus := _cpu_list(folder / name):
                return cpus
    return None


def _quota(groups: list[Path]) -> float | None:
    """The tightest limit in CPUs: `cpu.max` is "<us per period|max> <period us>"."""
    found: list[float] = []
    for folder in groups:
        words = (_text(folder / "cpu.max") or "").split()
        if len(words) != 2:
            words = [
                str(_integer(folder / "cpu.cfs_quota_us", -1)),
                str(_integer(folder / "cpu.cfs_period_us", 0)),
            ]
        if words[0].isdigit() and words[1].isdigit() and int(words[0]) and int(words[1]):
            found.append(int(words[0]) / int(words[1]))
    return min(found, default=None)


def _cpu_list(path: Path) -> frozenset[int] | None:
    text = _text(path)
    if text is None:
        return None
    try:
        return parse_cpus(text)
    except ValueError:
        return None


def _integer(path: Path, missing: int) -> int:
    text = (_text(path) or "").strip()
    return int(text) if text.lstrip("-").isdigit() else missing


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return None
