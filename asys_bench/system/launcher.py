"""What the launcher of a job has told this process: its rank, its node, the job's name. Nothing else here
reads those variables.

A process may have the variables of several launchers: torchrun under `srun`, `mpirun` in a Slurm job, a Ray
actor on a node whose Ray `srun` has started. The innermost one is believed, in this order:

    verl        RAY_LOCAL_WORLD_SIZE, RANK, RAY_LOCAL_RANK. Before torchrun's: its workers write LOCAL_RANK=0
                and LOCAL_WORLD_SIZE=1 where each actor sees one GPU
    torchrun    RANK, LOCAL_RANK, LOCAL_WORLD_SIZE: also of accelerate, DeepSpeed, Ray Train and Lightning
    Open MPI    OMPI_COMM_WORLD_RANK, OMPI_COMM_WORLD_LOCAL_RANK, OMPI_COMM_WORLD_LOCAL_SIZE
    Slurm       SLURM_PROCID, SLURM_LOCALID, SLURM_STEP_TASKS_PER_NODE, SLURM_NODEID. SLURM_TASKS_PER_NODE is
                the allocation's: a batch script has it too, and is one process

A set that is not complete, or contradicts itself, is passed over.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

_TASKS = re.compile(r"([0-9]+)(?:\(x([0-9]+)\))?")
_MOST_TASKS = 1 << 20


@dataclass(frozen=True, slots=True)
class LocalRanks:
    """This process's place among the processes of its job.

    rank: over all nodes; it is the `source` of this process's packets.
    world_size: ranks of the whole job.
    job: the same for all ranks of this node and attempt, and different for every other job.
    """

    rank: int
    local_rank: int
    local_world_size: int
    job: str
    world_size: int = 0

    @classmethod
    def from_environment(cls, env: Mapping[str, str] | None = None) -> Self | None:
        """What the innermost launcher has set; None: no launcher started us."""
        env = os.environ if env is None else env
        for read in (_verl, _torchrun, _open_mpi, _slurm):
            try:
                rank, local_rank, local_world_size, world_size, job = read(env)
            except (KeyError, ValueError):
                continue
            if 0 <= local_rank < local_world_size and rank >= 0:
                named = f"{read.__name__[1:]}|" + "|".join(job)
                return cls(
                    rank, local_rank, local_world_size, named, max(world_size, local_world_size)
                )
        return None

    @property
    def is_owner(self) -> bool:
        """Local rank 0 owns the node's bus and workers."""
        return self.local_rank == 0

    @property
    def slots(self) -> list[str]:
        """Slots of the stats page beside `host`, which is local rank 0's."""
        return [self.slot_of(local) for local in range(1, self.local_world_size)]

    @property
    def slot(self) -> str:
        return self.slot_of(self.local_rank)

    @staticmethod
    def slot_of(local_rank: int) -> str:
        """The stats slot of a local rank."""
        return "host" if local_rank == 0 else f"host-{local_rank}"


_Place = tuple[int, int, int, int, tuple[str, ...]]
"""Rank, local rank, ranks of the node, ranks of the job, and what tells the node's part of the job from all
others on this machine."""


def _torchrun(env: Mapping[str, str]) -> _Place:
    rank, local_rank = int(env["RANK"]), int(env["LOCAL_RANK"])
    names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT")
    # Ranks of a node are consecutive: two agents of one job may be on one machine.
    job = (*(env.get(name, "") for name in names), str(rank - local_rank))
    size = int(env["LOCAL_WORLD_SIZE"])
    return rank, local_rank, size, int(env.get("WORLD_SIZE", size)), job


def _verl(env: Mapping[str, str]) -> _Place:
    """Ranks of a node are consecutive; later versions do not say which of them this one is."""
    rank, size = int(env["RANK"]), int(env["RAY_LOCAL_WORLD_SIZE"])
    names = ("WG_PREFIX", "MASTER_ADDR", "MASTER_PORT")
    job = tuple(env.get(name, "") for name in names)
    if "RAY_LOCAL_RANK" in env:
        local_rank = int(env["RAY_LOCAL_RANK"])
        job = (*job, str(rank - local_rank))
    else:
        local_rank = rank % max(size, 1)  # each number once, wherever the node's first rank is
    return rank, local_rank, size, int(env.get("WORLD_SIZE", size)), job


def _open_mpi(env: Mapping[str, str]) -> _Place:
    size = int(env["OMPI_COMM_WORLD_LOCAL_SIZE"])
    return (
        int(env["OMPI_COMM_WORLD_RANK"]),
        int(env["OMPI_COMM_WORLD_LOCAL_RANK"]),
        size,
        int(env.get("OMPI_COMM_WORLD_SIZE", size)),
        (env.get("PMIX_NAMESPACE", ""),),
    )


def _slurm(env: Mapping[str, str]) -> _Place:
    node = int(env["SLURM_NODEID"])
    tasks = tasks_per_node(env["SLURM_STEP_TASKS_PER_NODE"])
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    job = (*(env.get(name, "") for name in names), str(node))
    if not 0 <= node < len(tasks):
        raise ValueError(f"node {node} of {len(tasks)}")
    return int(env["SLURM_PROCID"]), int(env["SLURM_LOCALID"]), tasks[node], sum(tasks), job


def tasks_per_node(text: str) -> list[int]:
    """Slurm's list of tasks of each node: "8(x2),4" is [8, 8, 4].

    Raises:
        ValueError: it is no such list, or longer than any cluster.
    """
    counts: list[int] = []
    for part in text.split(","):
        found = _TASKS.fullmatch(part)
        if found is None or max(int(found[1]), len(counts) + int(found[2] or 1)) > _MOST_TASKS:
            raise ValueError(f"{text[:80]!r} is no list of tasks per node")
        counts += [int(found[1])] * int(found[2] or 1)
    return counts


def job_name(env: Mapping[str, str] | None = None) -> str | None:
    """What the scheduler calls the job, the same after a requeue; None: nobody has named it."""
    env = os.environ if env is None else env
    names = (env.get("SLURM_JOB_ID"), env.get("TORCHELASTIC_RUN_ID"))
    return next((name for name in names if name and name != "none"), None)


def node_name(env: Mapping[str, str] | None = None) -> str:
    """Which node of its job this is: its number, or the number of its first rank; "0" is the first."""
    env = os.environ if env is None else env
    told = (env.get("GROUP_RANK"), env.get("NODE_RANK"), env.get("SLURM_NODEID"))
    found = next((number for number in told if number), None)
    if found is not None:
        return found
    ranks = LocalRanks.from_environment(env)
    return "0" if ranks is None else str(ranks.rank - ranks.local_rank)
