"""The ranks of one job on this node, as torchrun tells them to each process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

_JOB = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True)
class LocalRanks:
    """This process's place among the processes of its job.

    rank: over all nodes; it is the `source` of this process's packets.
    job: the same for all ranks of this node and attempt, and different for every other job.
    """

    rank: int
    local_rank: int
    local_world_size: int
    job: str

    @classmethod
    def from_environment(cls, env: Mapping[str, str] | None = None) -> Self | None:
        """What torchrun has set (RANK, LOCAL_RANK, LOCAL_WORLD_SIZE); None: it did not start us."""
        env = os.environ if env is None else env
        try:
            rank, local_rank = int(env["RANK"]), int(env["LOCAL_RANK"])
            local_world_size = int(env["LOCAL_WORLD_SIZE"])
        except (KeyError, ValueError):
            return None
        if not 0 <= local_rank < local_world_size or rank < 0:
            return None
        node = rank - local_rank  # ranks of a node are consecutive
        job = "|".join([*(env.get(name, "") for name in _JOB), str(node)])
        return cls(rank, local_rank, local_world_size, job)

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
