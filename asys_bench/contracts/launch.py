"""What a supervisor needs to start workers: plain JSON data plus inherited descriptors.

The host writes one `LaunchSpec` to the watchdog's standard input; the watchdog hands each worker its
`WorkerSpec`. Nothing is pickled but the strings and descriptor numbers of the fork server itself.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal


def rank_name(worker: str, rank: int) -> str:
    """What the plan calls a worker's process of that number; 0 is the worker itself."""
    return worker if rank == 0 else f"{worker}.{rank}"


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One worker process. `name` is also its slot in the stats page."""

    name: str
    role: Literal["sink", "monitor"]
    plugin: str
    options: dict[str, Any]
    group: str = ""
    """The consumer group it joins; sinks only."""
    threads: int = 1
    """Torch intra-op threads."""
    nice: int = 0
    """Niceness added on top of the host's, 0..19."""
    idle: bool = False
    """It gets only the CPU time that nobody else wants (SCHED_IDLE)."""
    preload: tuple[str, ...] = ()
    """Modules the fork server imports once for all workers."""


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """Everything the watchdog needs. Descriptors: [page, *bus handle fds] in that order."""

    run_id: str
    run_dir: str
    step_unit: str
    terminal: bool
    host_pid: int
    bus: dict[str, Any]
    fds: tuple[int, ...]
    workers: tuple[WorkerSpec, ...]
    config: dict[str, Any]
    """The run's whole configuration; each process validates once what it needs of it."""
    placements: dict[str, Any] = field(default_factory=dict)
    """Process name -> where it runs (`placement.plan.Placement`); absent: anywhere."""
    niceness: int = 0
    """The host's, to which `WorkerSpec.nice` is added."""
    first_step: int = 0
    """The host's at its start."""
    attempt: int = 0
    """Which life of the run this is; see `run.attempts`."""
    first_packet: int = 0
    """Packets that a shard had been offered before, in the earlier attempts."""
    shards: int = 1
    """Of the bus: its writers, each rank of the node or each one that a receiver takes packets of."""
    working_dir: str = ""
    """The host's at the start, to which relative paths in options refer; "" when it had none."""

    def niceness_of(self, worker: WorkerSpec) -> int | None:
        """The niceness that `worker` is to have; None: the host's, and nothing is to be done."""
        return min(19, self.niceness + worker.nice) if worker.nice else None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LaunchSpec:
        workers = tuple(WorkerSpec(**worker) for worker in data["workers"])
        return cls(**{**data, "workers": workers, "fds": tuple(data["fds"])})
