"""The packets of a hook as they were captured, from the archive's record batches.

Rows, key, weight and moment are those that a live trainer got, so the same packets are held out, the
same weights count and the same packets of two hooks belong together.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from asys_bench.contracts.preprocessor import Positions
from asys_bench.contracts.run_files import share_coin
from asys_bench.sae.training.held_out import PacketKey
from asys_bench.sae.training.pairing import HookRows, JointRows, Moment, MomentMatcher
from asys_bench.sinks.archive import Archive, ShardGoneError, attempt_of, counts

_COLUMNS = ("source", "shard", "seq", "sampling_rate", "host_step", "microbatch", "call_index",
            "weights_version")  # fmt: skip
PACKETS_WAITING = 4096
"""Packets of two hooks that may wait for each other; several archivers write a hook's shards out of step."""


@dataclass(frozen=True, slots=True)
class PacketRows:
    """One packet, or those of several hooks at one moment (`joint`)."""

    rows_ND: torch.Tensor
    """float32[N, D], of several hooks the first one's; of a dtype that Arrow lacks, the widened
    values."""
    key: PacketKey
    weight: float
    """Rows that each row stands for: 1 / sampling rate; of two packets see `pairing`."""
    moment: Moment
    weights_version: int
    places: Positions
    """Which rows of what the module gave they are."""
    attempt: int = 0
    joint: JointRows | None = None


def archive_packets(archive: Archive, hook: str) -> Iterator[PacketRows]:
    """Every packet of `hook` once, shard by shard in the order written.

    Raises:
        KeyError: the archive has no such hook.
        ArchiveError: a shard is damaged.
    """
    held: PacketRows | None = None
    for batch in archive.batches(hook):
        for packet in _packets(batch, archive):
            same = held is not None and (held.key, held.attempt) == (packet.key, packet.attempt)
            if held is not None and same:  # a record batch ended inside it
                held = replace(
                    held,
                    rows_ND=torch.cat([held.rows_ND, packet.rows_ND]),
                    places=np.concatenate([held.places, packet.places]),
                )
                continue
            if held is not None:
                yield held
            held = packet
    if held is not None:
        yield held


def joint_packets(archive: Archive, hooks: Sequence[str]) -> Iterator[PacketRows]:
    """Packets of several hooks that saw the same forward pass; those whose moment is not complete are
    left out.

    Raises:
        KeyError, ArchiveError: as `archive_packets`.
        ValueError: no packets of many belong together; says why.
    """
    matcher = MomentMatcher(
        hooks,
        shared_coin=share_coin(archive.run_dir, hooks),
        most_waiting=PACKETS_WAITING * len(hooks) // 2,
    )
    streams = [_of_hook(archive, hook, index) for index, hook in enumerate(hooks)]
    for index, packet in heapq.merge(*streams, key=lambda one: one[1].moment):
        own = HookRows(
            packet.rows_ND, packet.key, packet.weight, packet.weights_version, packet.places
        )
        joint = matcher.offer(index, packet.moment, own)
        if joint is None:
            if matcher.problem is not None:
                raise ValueError(matcher.problem)
            continue
        first = joint.hooks[0].rows
        yield PacketRows(
            first,
            joint.key,
            joint.weight,
            packet.moment,
            joint.weights_version,
            packet.places,
            packet.attempt,
            joint,
        )


def _of_hook(archive: Archive, hook: str, index: int) -> Iterator[tuple[int, PacketRows]]:
    for packet in archive_packets(archive, hook):
        yield index, packet


def archived_rows(archive: Archive, hook: str) -> int:
    """Rows of `hook` in all shards, from their headers alone (a packet stored twice counts twice).

    Shards that were deleted since the archive was opened have none.

    Raises:
        KeyError, ArchiveError: as `archive_packets`.
    """
    rows = 0
    for path in archive.shards(hook):
        try:
            rows += counts(path)[0]
        except ShardGoneError:
            archive.skip(path)
    return rows


def _packets(batch: Any, archive: Archive) -> Iterator[PacketRows]:
    attempt = attempt_of(batch)
    first_packet = archive.first_packets.get(attempt, 0)
    flat = batch.column("values").flatten().to_numpy(zero_copy_only=False)
    # A copy of its own: Arrow's memory is read-only, and goes with the batch.
    rows_ND = torch.from_numpy(np.array(flat, dtype=np.float32).reshape(batch.num_rows, -1))
    column = {name: batch.column(name).to_numpy() for name in _COLUMNS}
    row_N = batch.column("row").to_numpy().astype(np.int64)
    changes = [np.diff(column[name].astype(np.int64)) != 0 for name in ("source", "shard", "seq")]
    borders = [0, *(np.flatnonzero(np.any(changes, axis=0)) + 1).tolist(), batch.num_rows]
    for begin, end in pairwise(borders):
        if begin == end:
            continue
        source, shard, seq, step, microbatch, call, version = (
            int(column[name][begin])
            for name in ("source", "shard", "seq", "host_step", "microbatch", "call_index",
                         "weights_version")
        )  # fmt: skip
        yield PacketRows(
            rows_ND[begin:end],
            (source, shard, seq + first_packet),
            1.0 / float(column["sampling_rate"][begin]),
            Moment(source | attempt << 32, shard, step, version, microbatch, call),
            version,
            row_N[begin:end],
            attempt,
        )
