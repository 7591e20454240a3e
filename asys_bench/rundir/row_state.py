"""What a reader of rows is over and what it has left: the states that `RowDataset` saves and loads.

A state is a mapping that JSON takes: the plan (seed, window, shards and their rows), the epoch, and of one
reader (a rank's `DataLoader` worker) the intervals of the epoch's order that it has not given out. Its size
goes with the number of shards, by about 50 bytes each, not with the window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from asys_bench.rundir.row_index import RowIndex
from asys_bench.rundir.row_order import CHUNKS_PER_WINDOW, Interval, RowOrder, share_of_rank

FORMAT = "asys.rows/1"


class Reader(NamedTuple):
    """One of the readers that share an epoch."""

    rank: int
    world_size: int
    worker: int = 0
    workers: int = 1


@dataclass(frozen=True)
class Plan:
    """What decides the order of every epoch; window 0: as written."""

    index: RowIndex
    seed: int
    window: int
    chunk_rows: int

    @classmethod
    def of(cls, index: RowIndex, seed: int, window: int) -> Plan:
        """Chunks are as large as record batches, so that each is read about once, within 1/16 and 1/2 of
        the window."""
        least, most = max(1, window // CHUNKS_PER_WINDOW), max(1, window // 2)
        return cls(index, seed, window, max(least, min(index.batch_rows, most)))

    def order(self, epoch: int) -> RowOrder:
        return RowOrder(self.index.rows, self.window, self.chunk_rows, seed=self.seed, epoch=epoch)


@dataclass(frozen=True)
class Part:
    """What one reader had left of an epoch. gone_rows: of shards that were deleted before their turn."""

    epoch: int
    reader: Reader
    left: list[Interval]
    gone_rows: int = 0


def save(plan: Plan, part: Part) -> dict[str, Any]:
    """The state of one reader."""
    return {
        "format": FORMAT,
        "epoch": part.epoch,
        "reader": list(part.reader),
        "left": [list(interval) for interval in part.left],
        "gone_rows": part.gone_rows,
        "plan": {
            "seed": plan.seed,
            "window": plan.window,
            "chunk_rows": plan.chunk_rows,
            "index": plan.index.to_dict(),
        },
    }


def load(states: Sequence[Mapping[str, Any]]) -> tuple[Plan, list[Part]]:
    """The plan and the parts of one or more states of one epoch.

    Raises:
        ValueError: they are not states, or not of one epoch of one plan.
    """
    if not states:
        raise ValueError("no state to load")
    try:
        parts = [_part(state) for state in states]
        saved = states[0]["plan"]
        plan = Plan(
            RowIndex.from_dict(saved["index"]),
            int(saved["seed"]),
            int(saved["window"]),
            int(saved["chunk_rows"]),
        )
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"not a state of a dataset of rows ({error!r})") from None
    if any(state["plan"] != saved for state in states) or len({p.epoch for p in parts}) > 1:
        raise ValueError("the states are not of one epoch of one dataset")
    rows, end = plan.index.rows, 0
    for first, stop in sorted(interval for part in parts for interval in part.left):
        if not end <= first < stop <= rows:
            raise ValueError(
                "the states are not of readers that shared an epoch: their rows overlap"
            )
        end = stop
    return plan, parts


def _part(state: Mapping[str, Any]) -> Part:
    if state["format"] != FORMAT:
        raise ValueError(f"format {state['format']!r}; this version knows {FORMAT!r}")
    left = [(int(first), int(stop)) for first, stop in state["left"]]
    reader = Reader(*map(int, state["reader"]))
    return Part(int(state["epoch"]), reader, left, int(state["gone_rows"]))


def left_for(
    parts: Sequence[Part], rank: int, world_size: int, batch_rows: int, drop_last: bool
) -> Part:
    """What a rank goes on with: what its own readers had left; where there are other ranks now, its share
    of what all had left.

    Raises:
        ValueError: states of readers are missing; says which.
    """
    mine = [part for part in parts if part.reader[:2] == (rank, world_size)]
    if mine:
        _check_workers(mine)
        left = sorted(interval for part in mine for interval in part.left)
        gone = sum(part.gone_rows for part in mine)
        return Part(mine[0].epoch, Reader(rank, world_size), left, gone)
    worlds = {part.reader.world_size for part in parts}
    ranks = {part.reader.rank for part in parts}
    if len(worlds) > 1 or ranks != set(range(max(worlds))):
        raise ValueError(
            f"states of ranks {sorted(ranks)} of {max(worlds)}, and this is rank {rank} of {world_size}: "
            "load the states of all ranks in one list, and what is left is shared anew"
        )
    for one in sorted(ranks):
        _check_workers([part for part in parts if part.reader.rank == one])
    every = sorted(interval for part in parts for interval in part.left)
    left = share_of_rank(every, rank, world_size, batch_rows, drop_last)
    return Part(parts[0].epoch, Reader(rank, world_size), left)


def _check_workers(parts: Sequence[Part]) -> None:
    workers = {part.reader.workers for part in parts}
    there = {part.reader.worker for part in parts}
    if len(workers) > 1 or there != set(range(max(workers))):
        raise ValueError(
            f"states of workers {sorted(there)} of {max(workers)} of rank {parts[0].reader.rank}: load those "
            "of all its workers in one list"
        )
