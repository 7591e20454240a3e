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
from asys_bench.contracts.packet import MAX_DIM
from asys_bench.contracts.run_files import ARCHIVE_DIR, SHARD_SUFFIX
from asys_bench.contracts.stats import Counter, Slot, StatsError
from asys_bench.sinks.archive.budget import sink_of
from asys_bench.sinks.archive.deletions import Deleted
from asys_bench.sinks.archive.encoded import is_encoded
from asys_bench.sinks.archive.layout import KEY_COLUMNS, ShardName
from asys_bench.sinks.archive.read import open_shard, parse_batch, read_schema
from asys_bench.sinks.archive.repair import repair_shard
from asys_bench.sinks.archive.sidecar import ArchiveError, Sidecar, packet_starts
from asys_bench.sinks.archive.space import DiskRefusedError, Patience
from asys_bench.system.files.atomic import WORDS

log = logging.getLogger(__name__)
PacketKey = tuple[int, int, int]
"""(source, shard, seq)"""


def take_over(
    run_dir: Path,
    worker: str,
    packets: int,
    patience: Patience,
    heartbeat: Callable[[], None],
    attempt: int = 0,
) -> dict[PacketKey, int]:
    """Repair the shards that `worker` left open, and learn what they hold.

    Returns rows archived per packet, for the last `packets` packets (a lease holds no more) of each
    series in each incarnation of this attempt whose packets may still be delivered again: a bus ends
    with its attempt. A damaged shard is logged
    and left for `verify_archive`.

    Raises:
        OSError: the disk fails, or is full at the drain deadline.
    """
    tail: dict[PacketKey, int] = {}
    for folder in sorted((run_dir / ARCHIVE_DIR).glob("*/")):
        for leftover in folder.glob(f".{worker}-*.tmp"):
            if re.fullmatch(
                rf"\.{re.escape(worker)}-[\d.]+-\d+\.(json|arrows).*\.tmp", leftover.name
            ):
                leftover.unlink(missing_ok=True)
        names = (ShardName.parse(path.name) for path in folder.glob(f"{worker}-*{SHARD_SUFFIX}"))
        mine = sorted((n for n in names if n and n.worker == worker), key=ShardName.sort_key)
        oldest = mine[-1].incarnation - MAX_DELIVERIES if mine else 0
        missing: dict[tuple[int, bytes], int] = {}
        for name in reversed(mine):
            heartbeat()
            path = folder / str(name)
            try:
                _close(path, patience)
                current = name.attempt == attempt and name.incarnation > oldest
                if path.exists() and current:
                    _read_tail(path, name.incarnation, packets, missing, tail)
            except ArchiveError as error:
                log.error("cannot take over a shard: %s", error)
            except DiskRefusedError:
                log.error("%s is complete but was not closed: `asys-run verify --repair`", path)
    return tail


def close_left(
    run_dir: Path,
    worker: str,
    members: int,
    attempt: int,
    patience: Patience,
    heartbeat: Callable[[], None],
) -> None:
    """Close what was left open in earlier attempts by workers that this one's sink has no more of: the
    first of its `members` workers does it.

    Raises:
        OSError: as `take_over`.
    """
    sink = sink_of(worker)
    if worker != f"{sink}-0":
        return
    for path in sorted((run_dir / ARCHIVE_DIR).glob(f"*/{sink}-*{SHARD_SUFFIX}")):
        name = ShardName.parse(path.name)
        if name is None or name.attempt == attempt or sink_of(name.worker) != sink:
            continue
        if int(name.worker.removeprefix(f"{sink}-") or 0) < members:
            continue
        heartbeat()
        try:
            _close(path, patience)
        except (ArchiveError, DiskRefusedError) as error:
            log.error("a shard of a worker that is no more is not closed: %s", error)


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
            source, shard, seq = (batch.column(name).to_numpy() for name in KEY_COLUMNS[:3])
            if is_encoded(schema):  # whole packets
                row = np.full(len(seq), MAX_DIM, dtype=np.int64)
            else:
                row = batch.column("row").to_numpy()
            last = np.append(packet_starts(source, shard, seq)[1:] - 1, len(seq) - 1)
            for *key, its_row in zip(
                *(column[last].tolist() for column in (source, shard, seq, row)), strict=True
            ):
                packet: PacketKey = (key[0], key[1], key[2])
                tail[packet] = max(tail.get(packet, 0), its_row + 1)
            left -= len(last)
        missing[series] = left


_PER_HOOK = ("archive_rows", "archive_packets", "archive_bytes", "archive_shards")


class HookMeters:
    """Counters of one hook: rows, packets, bytes of the files, shards started."""

    def __init__(self, slot: Slot, hook: str) -> None:
        self.rows, self.packets, self.bytes, self.shards = (
            slot.counter(name, hook=hook) for name in _PER_HOOK
        )


class Meters:
    """All counters of one archiver. A slot without room counts further hooks as `hook=other`."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self.duplicates: Counter = slot.counter("archive_duplicates_skipped")
        """Redelivered packets that were in the archive already."""
        self.damaged: Counter = slot.counter("archive_damaged_packets")
        """Packets that fail their checksum or cannot be decoded; they are skipped."""
        # From the start: a rate over a counter that appears with its first drop misses that drop.
        self._dropped = {
            (what, reason): slot.counter(f"archive_dropped_{what}", reason=reason)
            for what in ("packets", "rows")
            for reason in WORDS
        }
        self._deleted: dict[str, list[Counter]] = {}
        self._other = HookMeters(slot, "other")
        self._hooks: dict[str, HookMeters] = {}

    def hook(self, name: str) -> HookMeters:
        found = self._hooks.get(name)
        if found is None:
            try:
                found = HookMeters(self._slot, name)
            except StatsError:
                found = self._other
            self._hooks[name] = found
        return found

    def dropped(self, reason: str, packets: int, rows: int) -> None:
        """Count what the disk did not take; `reason` is one of `system.files.refusal.WORDS`."""
        self._dropped["packets", reason].add(packets)
        self._dropped["rows", reason].add(rows)

    def deleted(self, reason: str, total: Deleted) -> None:
        """Set what was deleted so far for `reason`: the record of deletions is what counts."""
        if reason not in self._deleted:
            self._deleted[reason] = [
                self._slot.counter(f"archive_deleted_{what}", reason=reason)
                for what in ("shards", "rows", "packets", "bytes")
            ]
        values = (total.shards, total.rows, total.packets, total.bytes)
        for counter, value in zip(self._deleted[reason], values, strict=True):
            counter.set(value)
