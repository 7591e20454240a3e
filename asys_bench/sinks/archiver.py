"""The archiver: writes every packet of its group to Arrow shards (`asys_bench.sinks.archive`).

- A lease becomes one record batch per hook and row layout (more past `rows_per_batch`); its rows are
  in the file when `consume` returns, which acknowledges them. A SIGKILL loses the open batch at
  most, and at_least_once delivers it again.
- A new incarnation repairs the shards its predecessor left open and skips packets they hold. When
  another member of the group gets a dead one's packets, rows can be in the archive twice;
  `open_archive` removes them by key.
- A disk that is full, over quota or failing pauses it (`enospc_retry_s`); after `enospc_hold_s` it
  drops packets and counts them by reason, so that the bus, the host and other sinks notice nothing,
  and it goes on by itself when the disk takes bytes again.
- `max_gib`, `max_age_s` and `min_free_gib` keep it small (`archive.budget`): the oldest closed shards
  are deleted and counted, but for pinned ones.
- A packet that fails its checksum or does not decode is counted and skipped, since it would fail
  again on every delivery.
"""

from __future__ import annotations

import logging
import resource
import time
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

import pyarrow as pa
import torch
from pydantic import Field

from asys_bench.contracts.bus import Delivery, Lease
from asys_bench.contracts.names import LABELS, file_slug
from asys_bench.contracts.packet import ActivationPacket, PacketError
from asys_bench.contracts.run_files import ARCHIVE_DIR
from asys_bench.contracts.sink import BaseSink, SinkContext, SinkOptions, SinkPlugin
from asys_bench.sinks.archive.budget import GIB, LOOK_S, Budget, Limits
from asys_bench.sinks.archive.encoded import (
    PacketLayout,
    build_packets,
    is_elements,
    packet_batches,
)
from asys_bench.sinks.archive.layout import (
    RowLayout,
    ShardName,
    rows_of,
    stored_dtype,
)
from asys_bench.sinks.archive.resume import Meters, PacketKey, close_left, take_over
from asys_bench.sinks.archive.rows import BATCH_BYTES, BatchBuilder, Piece, split
from asys_bench.sinks.archive.shard import ShardWriter
from asys_bench.sinks.archive.space import DiskRefusedError, Patience
from asys_bench.system.allocator import keep_freed_memory

log = logging.getLogger(__name__)
STORED_SHARD_S = 300.0
"""A run that has a store closes its shards after this time: open ones go with their machine."""
REMEMBERED_PACKETS = 8192
"""Packets remembered beyond those of the last incarnation, for leases that were taken away."""
_NARROW = {"keep": None, "float32": torch.float32, "float16": torch.float16}
Layout = RowLayout | PacketLayout


class ArchiverOptions(SinkOptions):
    """`sinks.<name>.options` of an archiver."""

    compression: Literal["none", "lz4", "zstd"] = Field(
        "none", description="Compression of record batches; none lets readers map the file."
    )
    values: Literal["keep", "float32", "float16", "encoded"] = Field(
        "keep",
        description="Dtype of archived floating-point values; keep stores bfloat16 and float8 as "
        "float32. float16 overflows to infinity above 65504. encoded: packets are stored as they "
        "travelled (int8, fp8, top-k, bfloat16), a quarter of the bytes with int8, and decoded when "
        "they are read; `Dataset.from_file` shows the packets.",
    )
    rows_per_batch: int = Field(
        65536,
        ge=1,
        le=1 << 24,
        description="Most rows of one record batch, but for packets with values: encoded.",
    )
    shard_rotate_mib: float = Field(
        256, gt=0, description="A shard that has reached this many MiB is closed."
    )
    max_gib: float | None = Field(
        None,
        gt=0,
        description="Most GiB of closed shards, over all hooks and workers of this sink and all "
        "attempts of the run: beyond that the oldest are deleted, and counted. Pinned ones "
        "(`asys-run pin`) count and stay. Shards are then closed at a quarter of it at the latest, "
        "divided among the hooks and workers, so that open ones add a quarter at most. null: unlimited.",
    )
    max_age_s: float | None = Field(
        None,
        gt=0,
        le=1e9,
        description="A closed shard whose newest row is older than this many seconds is deleted, and "
        "counted, while the run goes on. Shards are then closed after a quarter of it at the latest. "
        "null: unlimited.",
    )
    min_free_gib: float | None = Field(
        None,
        gt=0,
        description="GiB of the disk that are left free: below that the oldest closed shards are "
        "deleted, and counted; when none is left, rows are dropped as on a full disk. null: the "
        "archive takes what there is.",
    )
    max_open_shards: int = Field(
        2304,
        ge=1,
        le=4096,
        description="Most files open, if the process may have so many (`ulimit -n`, less 64); the one "
        "unused longest is closed first.",
    )
    fsync: Literal["never", "shard", "batch"] | None = Field(
        None,
        description="When rows are forced to the device: never, when a shard gets its name and closes, "
        "or before each lease is acknowledged. Only a power cut makes a difference. null: as "
        "`run.fsync` says.",
    )
    enospc_retry_s: float = Field(
        1.0,
        gt=0,
        le=3600,
        description="Seconds until a write that the disk refused (full, quota, I/O error) is tried "
        "again; doubled each time.",
    )
    enospc_retry_max_s: float = Field(
        30.0, gt=0, le=3600, description="Most seconds between two such attempts."
    )
    enospc_hold_s: float | None = Field(
        2.0,
        ge=0,
        le=86400,
        description="Seconds that packets wait for the disk before they are dropped and counted. They "
        "wait in the bus, which holds up every other sink once it is full. null: for ever.",
    )
    linger_s: float = Field(
        0.25, ge=0, le=60, description="Seconds a pull waits for `min_packets`."
    )
    min_packets: int = Field(32, ge=1, description="Packets worth a record batch.")
    max_packets: int = Field(512, ge=1, description="Most packets of one lease.")


class ArchiverWorker(BaseSink):
    """Writes packets as rows; one instance per worker process."""

    def __init__(self, options: ArchiverOptions) -> None:
        self._options = options
        self.max_packets = options.max_packets
        self.min_packets = min(options.min_packets, options.max_packets)
        self.linger_s = options.linger_s
        self._shards: dict[Layout, ShardWriter] = {}
        """Open shards, the one unused longest first."""
        self._next_number: dict[str, int] = {}
        self._series: set[Layout] = set()
        """Every layout that came so far."""
        self._budget: Budget | None = None
        self._next_look = 0.0

    def open(self, context: SinkContext) -> None:
        """Repair what an earlier incarnation left open and learn which packets it wrote."""
        # Leases differ in size by a factor of hundreds: the memory of the largest is kept for the next.
        keep_freed_memory()
        pa.set_memory_pool(pa.system_memory_pool())
        self._context = context
        self._worker = file_slug(context.name)
        self._meters = Meters(context.slot)
        options = self._options
        self._fsync = options.fsync or context.fsync.shard_policy
        self._patience = Patience(
            context, options.enospc_retry_s, options.enospc_retry_max_s, options.enospc_hold_s
        )
        self._builder = BatchBuilder(context.wall_offset_ns, context.attempt)
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most_open = min(options.max_open_shards, max(16, allowed - 64))
        limits = Limits(
            None if options.max_gib is None else int(options.max_gib * GIB),
            options.max_age_s,
            None if options.min_free_gib is None else int(options.min_free_gib * GIB),
        )
        if limits:
            to_wall_ns = context.clock_shift_ns + context.wall_offset_ns
            self._budget = Budget(
                context.run_dir,
                self._worker,
                limits,
                members=context.members,
                attempt=context.attempt,
                clock=lambda: time.monotonic_ns() + to_wall_ns,
                heartbeat=context.heartbeat,
                publish=self._meters.deleted,
            )
            self._budget.resume()
        self._written: dict[PacketKey, int] = take_over(
            context.run_dir,
            self._worker,
            self.max_packets,
            self._patience,
            context.heartbeat,
            context.attempt,
        )
        """Per recent packet, one past the last of its rows in the archive."""
        if self._budget is not None:
            close_left(
                context.run_dir, self._worker, context.members, context.attempt, self._patience,
                context.heartbeat,
            )  # fmt: skip
            self._budget.adopt()
        self._remember = len(self._written) + REMEMBERED_PACKETS + self.max_packets

    def consume(self, lease: Lease) -> None:
        """Append the lease's rows; they are in the files when it returns.

        Raises:
            OSError: the disk cannot be used at all, or refuses at the drain deadline.
        """
        series: dict[Layout, list[Piece]] = {}
        for packet in lease:
            if not packet.is_constant:
                self._sort_in(packet, series)
        for layout, pieces in series.items():
            self._append(layout, pieces, keep=series)
            self._context.heartbeat()
        if self._fsync == "batch":
            for layout in series:
                if layout in self._shards and not self._shards[layout].sync():
                    self._shards.pop(layout).abandon()
        while len(self._written) > self._remember:
            del self._written[next(iter(self._written))]

    def idle(self) -> None:
        """Close what has been open for long enough, and delete what has become too old."""
        age = self._options.max_age_s
        ages_s = [] if age is None else [age / 4]
        stored = (self._context.config.get("storage") or {}).get("uri") is not None
        ages_s += [STORED_SHARD_S] if stored else []
        if not (ages_s or self._budget) or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_S
        for layout, shard in list(self._shards.items()) if ages_s else ():
            if time.monotonic() - shard.began < min(ages_s):
                continue
            try:
                self._end(shard)
                del self._shards[layout]
            except DiskRefusedError:
                break
        if self._budget is not None:
            self._budget.look()

    def close(self) -> None:
        """End every shard. What a full disk keeps from being ended stays readable."""
        while self._shards:
            _, shard = self._shards.popitem()
            try:
                self._end(shard)
            except (DiskRefusedError, OSError) as error:
                log.error("%s is complete but was not closed: %s", shard.path, str(error))
                shard.abandon()
            self._context.heartbeat()

    def _sort_in(self, packet: ActivationPacket, series: dict[Layout, list[Piece]]) -> None:
        context, key = self._context, (packet.source, packet.shard, packet.seq)
        try:
            if not packet.verify():
                raise PacketError("its payload does not match its checksum")
            tensor = context.decode(packet)
            rows_ND = rows_of(tensor)
            places = context.rows(packet) if rows_ND is not None else None
            grid = "x".join(map(str, context.grid(packet))) if rows_ND is not None else ""
        except PacketError as error:
            if not self._meters.damaged.value:
                # A handler may keep the record, and the exception's frames hold views of the lease.
                why = str(error)
                log.error("packet %s is skipped (further ones are only counted): %s", key, why)
            self._meters.damaged.add()
            return
        hook = context.name_of(packet.hook_id)
        end = 0 if rows_ND is None else rows_ND.shape[0]
        if places is not None:
            end = int(places[-1]) + 1 if len(places) else 0
        first = self._written.get(key, -1)
        if first >= end:
            self._meters.duplicates.add()
            return
        self._written[key] = end
        if rows_ND is None:
            self._meters.hook(hook).packets.add()
            return
        encoding = context.name_of(packet.encoding_id)
        if self._options.values == "encoded":
            whole = PacketLayout(
                hook, rows_ND.shape[1], packet.dtype, encoding, is_elements(packet, tensor)
            )
            count = torch.empty(rows_ND.shape[0], 0)  # the decoded rows themselves are let go
            series.setdefault(whole, []).append(Piece(packet, encoding, count, 0))
            return
        first = max(first, 0)
        written = first if places is None else int(places.searchsorted(first))
        rows_ND = rows_ND[written:]
        places = None if places is None else places[written:]
        narrow = None if hook == LABELS else _NARROW[self._options.values]
        stored = stored_dtype(packet.dtype, narrow)
        layout = RowLayout(hook, rows_ND.shape[1], packet.dtype, stored)
        piece = Piece(packet, encoding, rows_ND, first, places, grid)
        series.setdefault(layout, []).append(piece)

    def _append(self, layout: Layout, pieces: list[Piece], keep: dict[Layout, list[Piece]]) -> None:
        schema = layout.schema(self._context.run_id)
        dropped: dict[str, tuple[set[PacketKey], int]] = {}
        rotate = True  # once a lease, so that no lease spans two shards of a series
        self._series.add(layout)
        batch_bytes: float = BATCH_BYTES
        if self._options.max_gib is not None:  # no shard is much larger than `_shard_bytes`
            batch_bytes = min(batch_bytes, self._shard_bytes)
        if isinstance(layout, RowLayout):
            parts = split(pieces, layout, self._options.rows_per_batch, batch_bytes)
        else:
            parts = packet_batches(pieces, batch_bytes)
        for part in parts:
            reason = self._patience.refusing
            if reason is None:
                try:
                    if self._budget is not None:
                        self._patience.attempt("archive rows", self._budget.keep_free)
                    self._write(self._shard(layout, keep, rotate), layout, part, schema)
                    rotate = self._options.max_gib is not None
                    continue
                except DiskRefusedError as refused:
                    reason = refused.reason
            packets, rows = dropped.setdefault(reason, (set(), 0))
            packets.update((p.packet.source, p.packet.shard, p.packet.seq) for p in part)
            dropped[reason] = packets, rows + sum(map(len, part))
        keys = {(p.packet.source, p.packet.shard, p.packet.seq) for p in pieces}
        keys -= {key for packets, _ in dropped.values() for key in packets}
        self._meters.hook(layout.hook).packets.add(len(keys))
        for reason, (packets, rows) in dropped.items():
            self._meters.dropped(reason, len(packets), rows)
            self._patience.gave_up(len(packets), rows)

    def _write(self, shard: ShardWriter, layout: Layout, part: list[Piece], schema: Any) -> None:
        meters, context = self._meters.hook(layout.hook), self._context
        if isinstance(layout, RowLayout):
            batch = self._builder.build(part, layout, schema)
        else:
            batch = build_packets(part, layout, schema, context.wall_offset_ns, context.attempt)
        rows = sum(map(len, part))
        try:
            meters.bytes.add(shard.append(batch, rows))
        finally:
            if shard.discarded:
                del self._shards[layout]
        meters.rows.add(rows)

    def _shard(self, layout: Layout, keep: dict[Layout, list[Piece]], rotate: bool) -> ShardWriter:
        """The open shard of `layout`; it is also the one used last."""
        shard = self._shards.get(layout)
        if rotate and shard is not None and shard.size >= self._shard_bytes:
            self._end(shard)
            del self._shards[layout]
            shard = None
        if shard is None:
            self._make_room(keep)
            compression = self._options.compression
            shard = ShardWriter(
                self._context.run_dir
                / ARCHIVE_DIR
                / file_slug(layout.hook)
                / self._name(layout.hook),
                layout.schema(self._context.run_id),
                compression=None if compression == "none" else compression,
                sync=self._fsync != "never",
                patience=self._patience,
            )
            self._meters.hook(layout.hook).shards.add()
        self._shards.pop(layout, None)
        self._shards[layout] = shard
        return shard

    @property
    def _shard_bytes(self) -> float:
        """A shard of this size is closed."""
        most = self._options.shard_rotate_mib * (1 << 20)
        if self._options.max_gib is not None:
            streams = max(1, len(self._series)) * self._context.members
            most = min(most, self._options.max_gib * GIB / (4 * streams))
        return most

    def _end(self, shard: ShardWriter) -> None:
        """Close a shard; the oldest ones are deleted first where it would not fit the budget."""
        with (
            self._budget.closing(shard.path, shard.size)
            if self._budget is not None
            else nullcontext()
        ):
            try:
                shard.close()
            except FileNotFoundError as error:
                log.error("%s was removed while it was written: %s", shard.path, str(error))
                shard.abandon()

    def _make_room(self, keep: dict[Layout, list[Piece]]) -> None:
        """Close what is unused longest, and what is too large since there are more series."""
        idle = [layout for layout in self._shards if layout not in keep]
        count = max(0, len(self._shards) + 1 - self._most_open)
        grown = [layout for layout in idle if self._shards[layout].size >= self._shard_bytes]
        for layout in dict.fromkeys([*idle[:count], *grown]):
            self._end(self._shards[layout])
            del self._shards[layout]

    def _name(self, hook: str) -> str:
        first = ShardName(self._worker, self._context.incarnation, 0, self._context.attempt)
        if hook not in self._next_number:
            folder = self._context.run_dir / ARCHIVE_DIR / file_slug(hook)
            taken = [-1]
            for path in folder.glob(f"{self._worker}-{first.life}-*"):
                name = ShardName.parse(path.name.split(".arrows")[0] + ".arrows")
                if name is not None and (name.worker, name.life) == (self._worker, first.life):
                    taken.append(name.number)
            self._next_number[hook] = max(taken) + 1
        number = self._next_number[hook]
        self._next_number[hook] = number + 1
        return str(replace(first, number=number))


def _build(options: SinkOptions) -> ArchiverWorker:
    assert isinstance(options, ArchiverOptions)
    return ArchiverWorker(options)


plugin = SinkPlugin(
    name="archiver",
    summary="writes packets to Arrow stream shards that Hugging Face datasets opens",
    options=ArchiverOptions,
    build=_build,
    default_delivery=Delivery.AT_LEAST_ONCE,
    takes_labels=True,
    # pyarrow imports pandas, where it is installed, at the first batch of every new worker.
    preload=("torch", "pyarrow", "pandas"),
)
