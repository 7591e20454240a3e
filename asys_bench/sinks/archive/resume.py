"""What a new incarnation of an archiver takes over from the last one's files.

Its predecessor was killed with at most one lease unacknowledged, and that lease is delivered again.
Its packets, as far as they were written, are the last ones in the newest shards of each series; they
are remembered so that they are not written twice.
"""

from __future__ import annotations

import logging
import mmap
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from asys_bench.contracts.bus import MAX_DELIVERIES
from asys_bench.sinks.archive.error import ArchiveError
from asys_bench.sinks.archive.layout import ARCHIVE_DIR, KEY_COLUMNS, SUFFIX, ShardName
from asys_bench.sinks.archive.read import open_shard, parse_batch, read_schema
from asys_bench.sinks.archive.repair import repair_shard
from asys_bench.sinks.archive.sidecar import Sidecar, packet_starts
from asys_bench.sinks.archive.space import DiskRefusedError, Patience

log = logging.getLogger(__name__)
PacketKey = tuple[int, int, int]
"""(source, shard, seq)"""


def take_over(
    run_dir: Path, worker: str, packets: int, patience: Patience, heartbeat: Callable[[], None]
) -> dict[PacketKey, int]:
    """Repair the shards that `worker` left open, and learn what they hold.

    Returns rows archived per packet, for the last `packets` packets (a lease holds no more) of each
    series in each incarnation whose packets may still be delivered again. A damaged shard is logged
    and left for `verify_archive`.

    Raises:
        OSError: the disk fails, or is full at the drain deadline.
    """
    tail: dict[PacketKey, int] = {}
    for folder in sorted((run_dir / ARCHIVE_DIR).glob("*/")):
        for leftover in folder.glob(f".{worker}-*.tmp"):
            if re.fullmatch(rf"\.{re.escape(worker)}-\d+-\d+\.(json|arrows).*\.tmp", leftover.name):
                leftover.unlink(missing_ok=True)
        names = (ShardName.parse(path.name) for path in folder.glob(f"{worker}-*{SUFFIX}"))
        mine = sorted((n for n in names if n and n.worker == worker), key=ShardName.sort_key)
        oldest = mine[-1].incarnation - MAX_DELIVERIES if mine else 0
        missing: dict[tuple[int, bytes], int] = {}
        for name in reversed(mine):
            heartbeat()
            path = folder / str(name)
            try:
                _close(path, patience)
                if path.exists() and name.incarnation > oldest:
                    _read_tail(path, name.incarnation, packets, missing, tail)
            except ArchiveError as error:
                log.error("cannot take over a shard: %s", error)
            except DiskRefusedError:
                log.error("%s is complete but was not closed: `asys-run verify --repair`", path)
    return tail


def _close(path: Path, patience: Patience) -> None:
    try:
        sidecar = Sidecar.read(path)
    except ArchiveError as error:
        log.warning("%s; it is made again", error)
        sidecar = None
    if sidecar is not None and sidecar.closed:
        return
    done = patience.attempt(f"repair {path}", lambda: repair_shard(path, thorough=False))
    if done.torn_bytes:
        log.warning(
            "%s: its writer died; %d rows kept, an unfinished batch of %s rows (%d bytes) is in %s",
            path,
            done.rows,
            "unknown" if done.torn_rows is None else done.torn_rows,
            done.torn_bytes,
            done.torn_copy,
        )


def _read_tail(
    path: Path,
    incarnation: int,
    packets: int,
    missing: dict[tuple[int, bytes], int],
    tail: dict[PacketKey, int],
) -> None:
    """Add the last packets of `path` to `tail`; `missing` counts down per incarnation and schema."""
    with open_shard(path) as (fd, frames):
        schema = read_schema(fd, path, frames)
        series = (incarnation, schema.serialize().to_pybytes())
        left = missing.setdefault(series, packets)
        mapping = memoryview(mmap.mmap(fd, frames.data_end, prot=mmap.PROT_READ))
        for frame in reversed(frames.batches):
            if left <= 0:
                break
            batch = parse_batch(mapping[frame.start : frame.end], path, schema, frame)
            if not batch.num_rows:
                continue
            source, shard, seq, row = (batch.column(name).to_numpy() for name in KEY_COLUMNS)
            last = np.append(packet_starts(source, shard, seq)[1:] - 1, len(seq) - 1)
            for *key, its_row in zip(
                *(column[last].tolist() for column in (source, shard, seq, row)), strict=True
            ):
                packet: PacketKey = (key[0], key[1], key[2])
                tail[packet] = max(tail.get(packet, 0), its_row + 1)
            left -= len(last)
        missing[series] = left
