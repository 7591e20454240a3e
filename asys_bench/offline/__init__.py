"""Training SAEs from a run's archive, with the very trainer that trains them live."""

from asys_bench.offline.archive_packets import (
    PacketRows,
    archive_packets,
    archived_rows,
    joint_packets,
)
from asys_bench.offline.hook_training import HookResult, HookTraining, Position
from asys_bench.offline.plan import Job, OfflinePlan, read_plan

__all__ = [
    "HookResult",
    "HookTraining",
    "Job",
    "OfflinePlan",
    "PacketRows",
    "Position",
    "archive_packets",
    "archived_rows",
    "joint_packets",
    "read_plan",
]
