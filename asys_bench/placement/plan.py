"""The plan: which process may run on which CPUs and where its memory lies. Pure; it reads nothing.

`auto`, in this order:

1. The host gets as many physical cores as it has torch threads, with all their hardware threads,
   on one NUMA node if one is large enough. No worker is ever put on a sibling of a host's CPU: two
   hardware threads share the core's caches and execution units.
2. Workers get a core per thread from what is left, the host's node first, because the bus lies there.
   When that is not enough they share what there is.
3. The watchdog and the monitors get one core together if there is one, else they run beside workers.
4. What nobody needs on the host's node goes to the host (data loaders, autograd threads); cores of
   other nodes stay free.

A plan that would harm is refused with the reason and the fix, never bent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from asys_bench.config.sections.resources import NumaMode, PinningMap
from asys_bench.placement.topology import Core, Topology
from asys_bench.system.cpu_lists import format_cpus, parse_cpus

HOST, WATCHDOG = "host", "watchdog"
Role = Literal["host", "sink", "service"]


@dataclass(frozen=True, slots=True)
class Need:
    """A process of the run. `threads`: how many of its threads compute at the same time."""

    name: str
    role: Role
    threads: int = 1
    device: str = ""
    """What it asks to compute on: `auto`, `cuda` or `cuda:N`; "" is the CPU. Only a device that is chosen is
    kept with the plan."""
    shares_host_gpu: bool = False
    """`auto` may take the host's GPU where there is no other."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one process runs. No CPUs: not pinned. `node`: its memory comes from there first."""

    cpus: frozenset[int] = frozenset()
    node: int | None = None
    device: str = ""
    """What it trains on; "" where it trains nothing, or nobody chose for it."""
    why: str = ""
    """The reason for `device`."""
    shared: bool = False
    """The host computes there too."""

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"cpus": format_cpus(self.cpus), "node": self.node}
        if self.device:
            found |= {"device": self.device, "why": self.why, "shared": self.shared}
        return found

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Placement:
        node = data.get("node")
        cpus, device = parse_cpus(str(data.get("cpus", ""))), str(data.get("device", ""))
        why, shared = str(data.get("why", "")), bool(data.get("shared", False))
        return cls(cpus, None if node is None else int(node), device, why, shared)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is no plan, and what to change."""

    reason: str
    fix: str

    def __str__(self) -> str:
        return f"{self.reason}; {self.fix}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Placements by process name (`host`, `watchdog`, `trainer-0`, ...)."""

    mode: Literal["none", "auto", "explicit"]
    placements: Mapping[str, Placement] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    refusal: Refusal | None = None

    def placement(self, name: str) -> Placement:
        return self.placements.get(name, Placement())

    @property
    def pins(self) -> bool:
        """It puts at least one process somewhere."""
        return any(placement.cpus for placement in self.placements.values())


def make_plan(
    topology: Topology,
    needs: Sequence[Need],
    pinning: Literal["none", "auto"] | PinningMap,
    numa: NumaMode = NumaMode.AUTO,
) -> Plan:
    """The plan for these processes; `needs` holds the host, and each name once."""
    if pinning == "none":
        return Plan("none", {need.name: Placement() for need in needs})
    plan = (
        _explicit(topology, needs, pinning)
        if isinstance(pinning, PinningMap)
        else _auto(topology, needs)
    )
    if plan.refusal is not None:
        return plan
    notes = [*plan.notes, *_quota_note(topology, plan)]
    placements, memory_notes = _with_memory(topology, plan.placements, numa)
    return Plan(plan.mode, placements, (*notes, *memory_notes))


def _auto(topology: Topology, needs: Sequence[Need]) -> Plan:
    cores = topology.usable_cores
    threads = next(need.threads for need in needs if need.role == "host")
    if len(cores) < 2:
        what = f"the only usable core has CPUs {format_cpus(topology.usable)}"
        return _refused(
            "auto",
            f"{what}: workers cannot be kept off it",
            "give the run a second core, or set resources.pinning to none",
        )
    if threads >= len(cores):
        return _refused(
            "auto",
            f"the host runs {threads} torch threads and {len(cores)} physical cores are usable: "
            "none is left for the workers",
            f"set resources.host_threads to {len(cores) - 1} or less, or resources.pinning to none",
        )
    ordered = _home_first(cores, threads)
    host, rest = ordered[:threads], ordered[threads:]
    sinks = [need for need in needs if need.role == "sink"]
    services = [need for need in needs if need.role == "service"]
    wanted = sum(need.threads for need in sinks)
    pool = rest[: min(len(rest), wanted + bool(services)) or 1]
    home = {core.node for core in host}
    host += [core for core in rest[len(pool) :] if core.node in home]
    placements = {HOST: Placement(_cpus(host))}
    notes: list[str] = []
    everyone = Placement(_cpus(pool))
    if len(pool) >= wanted:
        left = list(pool)
        for need in sinks:
            placements[need.name] = Placement(_cpus(left[: need.threads]))
            del left[: need.threads]
        placements |= {need.name: Placement(_cpus(left or pool)) for need in services}
    else:
        placements |= {need.name: everyone for need in (*sinks, *services)}
        notes.append(
            f"{len(sinks)} workers with {wanted} threads share {len(pool)} "
            f"core{'s' if len(pool) > 1 else ''} (CPUs {format_cpus(everyone.cpus)})"
        )
    return Plan("auto", placements, tuple(notes))


def _home_first(cores: Sequence[Core], threads: int) -> list[Core]:
    """Cores with the host's node first: the first that has room for a worker too, else the largest."""
    sizes = {node: sum(core.node == node for core in cores) for node in {c.node for c in cores}}
    fitting = [node for node, size in sizes.items() if size > threads]
    home = min(fitting) if fitting else max(sizes, key=lambda node: (sizes[node], -node))
    return sorted(cores, key=lambda core: (core.node != home, core))


def _explicit(topology: Topology, needs: Sequence[Need], wish: PinningMap) -> Plan:
    asked: dict[str, frozenset[int]] = {}
    if wish.host is not None:
        asked[HOST] = parse_cpus(wish.host)
    names = [need.name for need in needs if need.role != "host"]
    for need in needs:
        if need.role == "service" and wish.services is not None:
            asked[need.name] = parse_cpus(wish.services)
    for glob, listed in wish.workers.items():
        matched = [name for name in names if fnmatchcase(name, glob)]
        if not matched:
            return _refused(
                "explicit",
                f"resources.pinning.workers: {glob!r} matches no worker",
                f"the workers are {', '.join(names)}",
            )
        asked |= {name: parse_cpus(listed) for name in matched}
    for name, cpus in asked.items():
        if unusable := cpus - topology.usable:
            return _refused(
                "explicit",
                f"resources.pinning: CPU {format_cpus(unusable)} of {name} is offline or outside "
                "this process's cpuset",
                f"usable are {format_cpus(topology.usable)}",
            )
    left = topology.usable - frozenset[int]().union(*asked.values())
    unnamed = [need.name for need in needs if need.name not in asked]
    if unnamed and not left:
        return _refused(
            "explicit",
            f"resources.pinning: no CPU is left for {', '.join(unnamed)}",
            f"name them too, or leave some of {format_cpus(topology.usable)} to them",
        )
    placements = {need.name: Placement(asked.get(need.name, left)) for need in needs}
    return Plan("explicit", placements, tuple(_overlaps(topology, needs, placements)))


def _overlaps(
    topology: Topology, needs: Sequence[Need], placements: Mapping[str, Placement]
) -> Iterable[str]:
    host = placements[HOST].cpus
    siblings = _cpus(core for core in topology.cores if host.intersection(core.cpus)) - host
    for need in needs:
        cpus = placements[need.name].cpus
        if need.role == "host":
            if need.threads > len(cpus):
                yield f"the host runs {need.threads} torch threads on {len(cpus)} CPUs"
        elif cpus & host:
            yield f"{need.name} shares CPU {format_cpus(cpus & host)} with the host"
        elif cpus & siblings:
            shared = format_cpus(cpus & siblings)
            yield f"{need.name} on CPU {shared} shares a physical core with the host"


def _with_memory(
    topology: Topology, placements: Mapping[str, Placement], numa: NumaMode
) -> tuple[dict[str, Placement], list[str]]:
    """Add the memory node of every process whose CPUs are on one; the default is right otherwise."""
    if numa is NumaMode.NONE:
        return dict(placements), []
    if len(topology.nodes) < 2:
        return dict(placements), ["one NUMA node: there is nothing to bind memory to"]
    found: dict[str, Placement] = {}
    notes: list[str] = []
    for name, placement in placements.items():
        nodes = topology.nodes_of(placement.cpus)
        if len(nodes) != 1:
            text = f"{name} has CPUs on {len(nodes)} NUMA nodes: its memory is not bound"
            notes += [text] if placement.cpus else []
            found[name] = placement
            continue
        (node,) = nodes
        if topology.binds(node):
            found[name] = Placement(placement.cpus, node)
        else:
            notes.append(f"node {node} of {name} has no memory that this process may use")
            found[name] = placement
    return found, notes


def _quota_note(topology: Topology, plan: Plan) -> list[str]:
    """Pinning helps against neighbours, not against the cgroup's own clock."""
    quota = topology.quota_cpus
    spread = len(frozenset[int]().union(*(p.cpus for p in plan.placements.values())))
    if quota is None or quota >= spread:
        return []
    return [
        f"the cgroup allows {quota:g} CPUs of time and the plan uses {spread}: all of them together "
        "are throttled, pinned or not"
    ]


def _cpus(cores: Iterable[Core]) -> frozenset[int]:
    return frozenset(cpu for core in cores for cpu in core.cpus)


def _refused(mode: Literal["auto", "explicit"], reason: str, fix: str) -> Plan:
    return Plan(mode, refusal=Refusal(reason, fix))
