"""The stats page: heartbeats, counters, gauges and histograms in shared memory.

Every process of a run owns one slot and is its only writer; anyone with the descriptor reads. A
monitor therefore never sits on a data path and never asks a worker anything. The page is one memfd,
taken in full at start; nothing is left behind when the last process ends.

Layout (little-endian, 8-byte cells)::

    page    0  u64 magic, its low byte the layout's version | 1  u64 slots | 2 run state
            3 time left of the drain (ns) | 4 wall-clock offset (ns) | 5 owner pid | 6 owner's clock
            64.. slots
    slot    0..23 SlotField cells | 24..31 name (64 bytes UTF-8) | 32.. metrics, one after another
    metric  0 kind | 1 bytes of its name | 2.. name (UTF-8, whole cells) | data cells

A slot is as large as its SlotField.CELLS says, and the next one follows it: a slot that counts for
2,048 hooks is larger than that of a monitor. Metrics are appended to a slot at run time; their number is
written last, so a reader never sees half of one. A restarted worker finds its metrics by name and
goes on counting.

Processes of a run may read different clocks (time namespaces, `system/process`): nobody compares a time
in the page with his own clock unless the cell beside it says that it is the same one.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import re
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

from asys_bench.system.descriptor import Descriptor, map_shared
from asys_bench.system.files.atomic import private_memfd
from asys_bench.system.process import own_clock, start_time

VERSION = 2
MAGIC = 0x4753_5953_4100 | VERSION
PAGE_CELLS = 64
SLOT_BYTES = 2 * 1024 * 1024
"""Of a slot that nobody asked to be larger."""
NAME_CELL, NAME_BYTES = 24, 64
METRICS_CELL = 32
METRIC_NAME_BYTES = 4096
_SPARE_BYTES = 256 * 1024
_METRIC_NAME_ITSELF = 48

SUB_BUCKETS_LOG2 = 4
SUB_BUCKETS = 1 << SUB_BUCKETS_LOG2
HISTOGRAM_BUCKETS = 40 * SUB_BUCKETS
"""Log-linear buckets as in HdrHistogram: 16 per power of two (<= 6.25 % wide), values up to 2**43."""


class StatsError(RuntimeError):
    """The page is not a stats page, is full, or has no such slot."""


class RunState(IntEnum):
    STARTING = 0
    RUNNING = 1
    DRAINING = 2
    """The host has finished: consume what is left, write, exit."""
    STOPPED = 3


class WorkerState(IntEnum):
    EMPTY = 0
    STARTING = 1
    READY = 2
    """Subscribed and consuming."""
    DONE = 3
    """Finished in order; must not be restarted."""
    FAILED = 4
    """Died or was killed; a restart is due."""
    QUARANTINED = 5
    """Died too often; it stays down until a person acts."""


class SlotField(IntEnum):
    STATE = 0
    PID = 1
    PROCESS_START = 2
    """Kernel start time of PID (clock ticks): a reused pid is a different process."""
    INCARNATION = 3
    HEARTBEAT_NS = 4
    RESTARTS = 5
    READY_NS = 6
    EXIT_CODE = 7
    ENTRIES = 8
    AHEAD_NS = 9
    """How far HEARTBEAT_NS is ahead of its writer's clock; see `Slot.beat`."""
    DOWN_SINCE_NS = 10
    LAUNCH = 11
    """Which start of the worker the slot belongs to; a process of another one leaves."""
    CELLS = 12
    """Size of the slot; written once, when the page is made."""
    CLOCK = 13
    """Whose clock HEARTBEAT_NS is on (`own_clock`)."""


class MetricKind(IntEnum):
    COUNTER = 1
    GAUGE = 2
    HISTOGRAM = 3


@dataclass(frozen=True, slots=True)
class HistogramSnapshot:
    """Counts per bucket, plus the exact count, sum and maximum. Values in the metric's unit."""

    count: int
    total: int
    maximum: int
    buckets: tuple[int, ...]

    def quantile(self, q: float) -> float:
        """The value at quantile `q` in [0, 1]: the upper edge of its bucket, at most the maximum.

        NaN when nothing was recorded.
        """
        if self.count == 0:
            return float("nan")
        rank = max(1, -int(-q * self.count // 1))
        seen = 0
        for index, n in enumerate(self.buckets):
            seen += n
            if seen >= rank:
                return float(min(bucket_upper(index), self.maximum))
        return float(self.maximum)

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else float("nan")


def bucket_of(value: int) -> int:
    """The histogram bucket of a non-negative integer."""
    if value < SUB_BUCKETS:
        return value if value > 0 else 0
    shift = value.bit_length() - SUB_BUCKETS_LOG2 - 1
    index = (shift << SUB_BUCKETS_LOG2) + (value >> shift)
    return index if index < HISTOGRAM_BUCKETS else HISTOGRAM_BUCKETS - 1


def bucket_upper(index: int) -> int:
    """The largest value of bucket `index`."""
    if index < SUB_BUCKETS:
        return index
    shift = (index >> SUB_BUCKETS_LOG2) - 1
    mantissa = (index & (SUB_BUCKETS - 1)) + SUB_BUCKETS
    return ((mantissa + 1) << shift) - 1


class Counter:
    """A monotonic int64. Not thread-safe: the slot has one writer."""

    __slots__ = ("_cell", "_cells")

    def __init__(self, cells: memoryview, cell: int) -> None:
        self._cells, self._cell = cells, cell

    def add(self, n: int = 1) -> None:
        self._cells[self._cell] += n

    def set(self, value: int) -> None:
        """Overwrite (for totals that are counted elsewhere)."""
        self._cells[self._cell] = value

    @property
    def cell(self) -> int:
        """Its cell in the slot."""
        return self._cell

    @property
    def value(self) -> int:
        return int(self._cells[self._cell])


class Gauge:
    """A float64 that goes up and down; NaN (unknown) until it is first set."""

    __slots__ = ("_cell", "_cells")

    def __init__(self, cells: memoryview, cell: int) -> None:
        self._cells, self._cell = cells, cell

    def set(self, value: float) -> None:
        self._cells[self._cell] = struct.unpack("<q", struct.pack("<d", value))[0]

    @property
    def value(self) -> float:
        return float(struct.unpack("<d", struct.pack("<q", self._cells[self._cell]))[0])


class Histogram:
    """Log-linear histogram of non-negative integers (nanoseconds, bytes)."""

    __slots__ = ("_buckets", "_cells", "_first")

    def __init__(self, cells: memoryview, cell: int) -> None:
        self._cells, self._first, self._buckets = cells, cell, cell + 3

    def record(self, value: int) -> None:
        cells, first = self._cells, self._first
        cells[first] += 1
        cells[first + 1] += value
        if value > cells[first + 2]:
            cells[first + 2] = value
        cells[self._buckets + bucket_of(value)] += 1

    @property
    def cell(self) -> int:
        """Its first cell in the slot: count, sum, maximum, then the buckets."""
        return self._first

    def snapshot(self) -> HistogramSnapshot:
        cells, first = self._cells, self._first
        buckets = tuple(cells[self._buckets : self._buckets + HISTOGRAM_BUCKETS])
        return HistogramSnapshot(sum(buckets), cells[first + 1], cells[first + 2], buckets)


_CELLS_OF = {
    MetricKind.COUNTER: 1,
    MetricKind.GAUGE: 1,
    MetricKind.HISTOGRAM: 3 + HISTOGRAM_BUCKETS,
}
Metric = Counter | Gauge | Histogram
_TYPE_OF: dict[MetricKind, type[Counter] | type[Gauge] | type[Histogram]] = {
    MetricKind.COUNTER: Counter,
    MetricKind.GAUGE: Gauge,
    MetricKind.HISTOGRAM: Histogram,
}


_ESCAPES = {ord(letter): f"%{ord(letter):02X}" for letter in "%,={}"}
_ESCAPED = re.compile("|".join(_ESCAPES.values()))


def metric_name(name: str, **labels: str) -> str:
    """`name{key=value,...}` with sorted labels; how metrics with labels are spelled in the page.

    Values are any text: what would end one is written as `%2C`.
    """
    if not labels:
        return name
    return (
        name + "{" + ",".join(f"{k}={labels[k].translate(_ESCAPES)}" for k in sorted(labels)) + "}"
    )


def split_metric_name(full: str) -> tuple[str, dict[str, str]]:
    """The inverse of `metric_name`."""
    if not full.endswith("}") or "{" not in full:
        return full, {}
    name, _, inside = full[:-1].partition("{")
    labels = dict(part.partition("=")[::2] for part in inside.split(",") if part)
    if "%" in inside:
        labels = {key: _ESCAPED.sub(_letter, value) for key, value in labels.items()}
    return name, labels


def _letter(escape: re.Match[str]) -> str:
    return chr(int(escape[0][1:], 16))


def slot_bytes(labels: Iterable[str], metrics: int, histograms: int = 0) -> int:
    """Size of a slot with so many counters or gauges, and histograms, for each of `labels`."""
    cells = 0
    for label in labels:
        spelled = metric_name("", hook=label)
        head = 2 + _cells_of_text(_METRIC_NAME_ITSELF + len(spelled.encode()))
        cells += (metrics + histograms) * head
        cells += metrics + histograms * _CELLS_OF[MetricKind.HISTOGRAM]
    return max(SLOT_BYTES, -(-(8 * cells + _SPARE_BYTES) // mmap.PAGESIZE) * mmap.PAGESIZE)


def _cells_of_text(nbytes: int) -> int:
    return -(-nbytes // 8)


class Slot:
    """One process's part of the page."""

    def __init__(self, page: memoryview, base: int, cells: int) -> None:
        self._cells = page[base : base + cells]
        self._known: dict[str, tuple[MetricKind, Metric]] = {}
        self._heard = (0, 0, 0)
        """A heartbeat, the clock that it is on, and this process's clock when it was first seen."""
        self._entries_read = 0
        self._next_cell = METRICS_CELL

    @property
    def cells(self) -> memoryview:
        """The slot's int64 cells, for a writer outside Python; let go of it before the page closes."""
        return self._cells

    def get(self, which: SlotField) -> int:
        return int(self._cells[which])

    def set(self, which: SlotField, value: int) -> None:
        self._cells[which] = value

    def beat(self, ahead_s: float = 0.0) -> None:
        """Record a heartbeat; whoever reads it may be on another clock (`silence_s`).

        ahead_s: for this long there may be no other one, beyond the usual: work that cannot beat.
        """
        ahead_ns = int(1e9 * ahead_s)
        # In this order: an old heartbeat must not be judged by the shorter time of a new one.
        self._cells[SlotField.HEARTBEAT_NS] = time.monotonic_ns() + ahead_ns
        self._cells[SlotField.AHEAD_NS] = ahead_ns

    def tick(self, cell: int, value: int) -> None:
        """Set a counter and beat; each step of a host pays for it."""
        cells = self._cells
        cells[cell] = value
        cells[SlotField.HEARTBEAT_NS] = time.monotonic_ns()
        cells[SlotField.AHEAD_NS] = 0

    def occupy(self) -> None:
        """Say that the slot is this process's from now on, and give its first heartbeat."""
        self._cells[SlotField.PID] = os.getpid()
        self._cells[SlotField.PROCESS_START] = start_time(os.getpid())
        self._cells[SlotField.CLOCK] = own_clock()
        self.beat()

    def silence_s(self, now_ns: int) -> float:
        """Seconds since the last heartbeat (negative while it is ahead); infinity before the first.

        Of a writer on another clock: since this process first saw that heartbeat, which is less by up
        to the time between two looks.

        now_ns: CLOCK_MONOTONIC of this process.
        """
        cells = self._cells
        ahead_ns = cells[SlotField.AHEAD_NS]  # before the heartbeat; see `beat`
        beat_ns, clock = cells[SlotField.HEARTBEAT_NS], cells[SlotField.CLOCK]
        if not beat_ns:
            return math.inf
        if self._heard[:2] != (beat_ns, clock):
            self._heard = beat_ns, clock, now_ns
        if clock and clock == own_clock():
            return (now_ns - beat_ns) / 1e9
        return (now_ns - self._heard[2] - ahead_ns) / 1e9

    @property
    def state(self) -> WorkerState:
        return WorkerState(self._cells[SlotField.STATE])

    @state.setter
    def state(self, value: WorkerState) -> None:
        self._cells[SlotField.STATE] = int(value)

    @property
    def name(self) -> str:
        raw = self._cells[NAME_CELL : NAME_CELL + NAME_BYTES // 8].tobytes()
        return raw.rstrip(b"\0").decode()

    def counter(self, name: str, **labels: str) -> Counter:
        metric = self._ensure(MetricKind.COUNTER, metric_name(name, **labels))
        assert isinstance(metric, Counter)
        return metric

    def gauge(self, name: str, **labels: str) -> Gauge:
        metric = self._ensure(MetricKind.GAUGE, metric_name(name, **labels))
        assert isinstance(metric, Gauge)
        return metric

    def histogram(self, name: str, **labels: str) -> Histogram:
        metric = self._ensure(MetricKind.HISTOGRAM, metric_name(name, **labels))
        assert isinstance(metric, Histogram)
        return metric

    def metrics(self) -> dict[str, Metric]:
        """Every metric of this slot by full name, as far as its writer has published them."""
        self._read_directory()
        return {name: metric for name, (_, metric) in self._known.items()}

    def _read_directory(self) -> None:
        cells, count = self._cells, int(self._cells[SlotField.ENTRIES])
        while self._entries_read < count:
            cell = self._next_cell
            kind, nbytes = MetricKind(cells[cell]), int(cells[cell + 1])
            first = cell + 2 + _cells_of_text(nbytes)
            name = cells[cell + 2 : first].tobytes()[:nbytes].decode()
            self._known[name] = (kind, _TYPE_OF[kind](cells, first))
            self._next_cell = first + _CELLS_OF[kind]
            self._entries_read += 1

    def _ensure(self, kind: MetricKind, name: str) -> Metric:
        self._read_directory()
        found = self._known.get(name)
        if found is not None:
            if found[0] is not kind:
                raise StatsError(f"metric {name!r} is a {found[0].name}, not a {kind.name}")
            return found[1]
        raw = name.encode()
        if len(raw) > METRIC_NAME_BYTES:
            raise StatsError(
                f"the name of metric {name[:80]!r}... has {len(raw)} bytes of UTF-8; at most "
                f"{METRIC_NAME_BYTES} fit"
            )
        cells, cell = self._cells, self._next_cell
        first = cell + 2 + _cells_of_text(len(raw))
        if first + _CELLS_OF[kind] > len(cells):
            raise StatsError(
                f"no room for metric {name!r}: slot {self.name!r} has {8 * len(cells)} bytes, "
                f"and {self._entries_read} metrics"
            )
        # Zeros too: a writer that was killed right here may have left a longer name.
        blank = raw.ljust(8 * (first - cell - 2 + _CELLS_OF[kind]), b"\0")
        cells[cell + 2 : first + _CELLS_OF[kind]] = memoryview(blank).cast("q")
        cells[cell], cells[cell + 1] = int(kind), len(raw)
        if kind is MetricKind.GAUGE:
            Gauge(cells, first).set(math.nan)
        self.set(SlotField.ENTRIES, self._entries_read + 1)
        self._read_directory()
        return self._known[name][1]

    def release(self) -> None:
        self._known.clear()
        self._cells.release()


def _check(mapping: mmap.mmap, size: int) -> None:
    """Raises StatsError: a reader of this layout would read beyond the page, or nonsense."""
    magic, slots = struct.unpack_from("<qq", mapping)
    if magic != MAGIC and magic | 0xFF == MAGIC | 0xFF:
        raise StatsError(
            f"the stats page has layout version {magic & 0xFF}, this build reads {VERSION}; read it "
            "with the version of asys-i that runs there"
        )
    end = 8 * PAGE_CELLS
    for _ in range(slots if magic == MAGIC else 0):
        if end + 8 * METRICS_CELL > size:
            break
        cells = struct.unpack_from("<q", mapping, end + 8 * SlotField.CELLS)[0]
        end += 8 * max(cells, METRICS_CELL)
    if magic != MAGIC or end != size:
        raise StatsError(f"not a stats page: magic {magic:#x}, {slots} slots, {size} bytes")


class StatsPage:
    """The whole page; `create` in the run's owner, `attach` by descriptor anywhere else."""

    def __init__(self, descriptor: Descriptor, mapping: mmap.mmap) -> None:
        self._descriptor = descriptor
        self._mapping = mapping
        self._cells = memoryview(mapping).cast("q")
        self._slots: dict[str, Slot] = {}
        self._drain_seen = (0, 0)
        """The time left of the drain as it was last read, and this process's clock at that time."""
        base = PAGE_CELLS
        for _ in range(int(self._cells[1])):
            size = int(self._cells[base + SlotField.CELLS])
            slot = Slot(self._cells, base, size)
            self._slots[slot.name] = slot
            base += size

    @classmethod
    def create(cls, slots: Sequence[str] | Mapping[str, int]) -> Self:
        """A fresh page with one slot per name (<= 64 bytes of UTF-8 each, unique).

        slots: names, or name -> size in bytes (`slot_bytes`); SLOT_BYTES without.

        Raises:
            StatsError: bad names; OSError: no memory or descriptors left.
        """
        if len(set(slots)) != len(slots):
            raise StatsError(f"slot names are not unique: {slots}")
        sizes = dict(slots) if isinstance(slots, Mapping) else dict.fromkeys(slots, SLOT_BYTES)
        size = 8 * PAGE_CELLS + sum(sizes.values())
        fd = private_memfd("asys-stats", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(fd, 0, size)
            # Cut short under its readers, it would end each of them with SIGBUS.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            with map_shared(fd, size) as mapping:
                offset = 8 * PAGE_CELLS
                for name, nbytes in sizes.items():
                    raw = name.encode()
                    if not 0 < len(raw) <= NAME_BYTES:
                        raise StatsError(f"slot name {name!r} is not 1..{NAME_BYTES} bytes")
                    at = offset + 8 * NAME_CELL
                    mapping[at : at + len(raw)] = raw
                    struct.pack_into("<q", mapping, offset + 8 * SlotField.CELLS, nbytes // 8)
                    offset += nbytes
                wall_offset = time.time_ns() - time.monotonic_ns()
                head = (
                    MAGIC, len(sizes), RunState.STARTING, 0, wall_offset, os.getpid(), own_clock()
                )  # fmt: skip
                mapping[: 8 * len(head)] = struct.pack(f"<{len(head)}q", *head)
            return cls.attach(fd)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def attach(cls, fd: int) -> Self:
        """Map the page behind `fd` (owned by the result, which may give it another number).

        Raises:
            StatsError: it is not a stats page, or one of another version of its layout.
        """
        size = os.fstat(fd).st_size
        if size < 8 * PAGE_CELLS:
            raise StatsError(f"{size} bytes are too few for a stats page")
        mapping = map_shared(fd, size)
        try:
            _check(mapping, size)
        except StatsError:
            mapping.close()
            raise
        return cls(Descriptor(fd), mapping)

    @property
    def fd(self) -> int:
        """For passing on. Raises OSError: this process has closed it (the page stays mapped)."""
        return self._descriptor.number

    def slot(self, name: str) -> Slot:
        try:
            return self._slots[name]
        except KeyError:
            raise StatsError(f"no slot {name!r}; valid: {', '.join(self._slots)}") from None

    def slots(self) -> Iterator[tuple[str, Slot]]:
        return iter(self._slots.items())

    @property
    def run_state(self) -> RunState:
        return RunState(self._cells[2])

    @run_state.setter
    def run_state(self, value: RunState) -> None:
        self._cells[2] = int(value)

    @property
    def drain_left_s(self) -> float:
        """Seconds until workers must have exited; infinity while the run goes on.

        It passes on the clock of whoever reads it, from what he read last; whoever ends the run writes
        it anew while he waits, so that one who comes late is told the same.
        """
        left_ns, now_ns = int(self._cells[3]), time.monotonic_ns()
        if not left_ns:
            return math.inf
        if self._drain_seen[0] != left_ns:
            self._drain_seen = left_ns, now_ns
        return (left_ns - (now_ns - self._drain_seen[1])) / 1e9

    @drain_left_s.setter
    def drain_left_s(self, value: float) -> None:
        self._cells[3] = max(1, int(1e9 * value))

    @property
    def wall_offset_ns(self) -> int:
        """Add to a packet's monotonic timestamp to get nanoseconds since the epoch."""
        return int(self._cells[4])

    @property
    def clock_shift_ns(self) -> int:
        """Add to this process's CLOCK_MONOTONIC to get the owner's, on which packets are stamped.

        0 on the same clock. Else it is told by the wall clock, and wrong by what that was stepped since
        the page was made.
        """
        if self._cells[6] == own_clock() != 0:
            return 0
        return time.time_ns() - time.monotonic_ns() - self.wall_offset_ns

    @property
    def owner_pid(self) -> int:
        return int(self._cells[5])

    def close(self) -> None:
        """Unmap and close the descriptor. Idempotent."""
        if self._descriptor.last_number < 0:
            return
        self._descriptor.close()
        for slot in self._slots.values():
            slot.release()
        self._slots.clear()
        self._cells.release()
        self._mapping.close()
