"""Batches that have come: checked as a whole, cut into runs, and put on the bus in the order of their coming.

A *run* is packets of one writer with numbers in a row, which the bus takes in one call: the ledger has an
intent for each (`ledger`). A batch is checked and rewritten by compiled code (`native`), which declines
what does not fit; then, and where it was not compiled, arrays do the same and say what is wrong.

No socket and no bus here: `Bus` is what is needed of one, so that tests drive it with a list.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from asys_bench.cluster import wire
from asys_bench.cluster.ledger import MOST_RUN, Account, Ledger, SenderKey
from asys_bench.cluster.wire import Ack, Refusal, WireError
from asys_bench.contracts.packet import (
    DTYPES,
    HEADER_BYTES,
    HEADERS,
    MAGIC,
    MAX_NDIM,
    VERSION,
    Kind,
    Places,
)

compiled: Callable[..., Any] | None
"""`native._arrivals.take`; None: it was not compiled."""
try:
    from asys_bench.cluster.native._arrivals import take as compiled
except ImportError:
    compiled = None

_LINE = np.dtype("V64")
"""Packets of a message begin at multiples of 64: a header is two lines."""
_LINES = HEADER_BYTES // _LINE.itemsize
_MOST = (1 << 63) - 1
_Headers = npt.NDArray[np.void]


class Bus(Protocol):
    """What the receiver needs of its own bus."""

    max_packet: int
    """Bytes of a packet, its header of the origin included."""

    def begin(self, feed: dict[str, Any]) -> None:
        """Start the run: streams, shards, step unit. Blocks until the workers consume."""

    def id_of(self, name: str) -> int:
        """The id of a name, interned now if it is new. Raises BusError: no room for it."""

    def push(self, shard: int, data: memoryview, places: Places) -> int:
        """Put packets on the bus, as `BusProducer.try_push_frames`; how many it took."""

    def room(self) -> tuple[int, int]:
        """(bytes, packets) that the fullest shard has room for."""

    def passed(self, host_step: int) -> None:
        """Packets up to this step of the origin were pushed."""


class Writer(NamedTuple):
    """One shard of an origin's bus, as a connection sends it."""

    account: Account
    shard: int
    """Of the receiver's bus."""
    shift: int
    """Added to a seq, so that numbers of later runs and attempts go on."""


class Run(NamedTuple):
    """See the module's docstring."""

    writer: Writer
    seq: int
    """Of its first packet, as the origin counts."""
    start: int
    stop: int
    """Its places in the batch."""
    fits: bool
    """Its packets are no larger than the bus takes."""


class Arrival:
    """A checked batch. ends: sums of its packets' bytes, from 0 on. next: the first of them that is not on
    the bus yet."""

    __slots__ = ("data", "ends", "host_step", "next", "number", "places", "runs")

    def __init__(
        self, number: int, data: memoryview, places: Places, ends: list[int], runs: deque[Run],
        host_step: int,
    ) -> None:  # fmt: skip
        self.number, self.data, self.places, self.runs = number, data, places, runs
        self.ends, self.host_step = ends, host_step
        self.next = 0

    def bytes_of(self, start: int, stop: int) -> int:
        """Of packets from `start` to before `stop`."""
        return self.ends[stop] - self.ends[start]


NOTHING = Ack(0, 0, 0, 0, 0, 0, 0)


@dataclass
class Connection:
    """One forwarder that was welcomed."""

    peer: bytes
    sender: SenderKey
    hello: wire.Hello
    generation: int
    heard: float
    names: dict[int, str] = field(default_factory=dict)
    writers: dict[tuple[int, int], Writer] = field(default_factory=dict)
    """By (source, shard)."""
    hooks: dict[int, int] = field(default_factory=dict)
    """Ids of the origin -> ids of this bus."""
    encodings: dict[int, int] = field(default_factory=dict)
    streams: frozenset[str] = frozenset()
    waiting: deque[Arrival] = field(default_factory=deque)
    """Batches that are not on the bus as a whole."""
    last: int = 0
    answered: Ack = NOTHING
    """Of the last batch that is on the bus as a whole; without total and limit."""
    received: int = 0
    processed: int = 0
    limit: int = 0
    accepted: int = 0
    duplicates: int = 0
    expired: int = 0
    unpushed: int = 0
    clock_offset_ns: int | None = None
    said: Ack | None = None
    owes: bool = False
    """It is to be answered though nothing has changed."""
    lag_ns: int | None = None
    """From the capture of the last packet to its arrival; it does not grow while nothing comes."""


def checked(
    connection: Connection, number: int, data: memoryview, max_packet: int, clock_ns: int
) -> Arrival:
    """A BATCH whose headers have this bus's ids, this node's time and seqs that go on, in place.

    max_packet: bytes that the bus takes. clock_ns: CLOCK_MONOTONIC of this node.

    Raises:
        WireError: something does not fit; `data` is as it was.
    """
    found = compiled and compiled(
        data, connection.hooks, connection.encodings, connection.writers, max_packet, clock_ns,
        connection.clock_offset_ns, len(DTYPES), len(Kind),
    )  # fmt: skip
    if found is None:
        return _checked(connection, number, data, max_packet, clock_ns)
    connection.clock_offset_ns, places, ends, runs, host_step, lag_ns = found
    if lag_ns is not None:
        connection.lag_ns = lag_ns
    where = np.frombuffer(places, np.int64).reshape(-1, 2)
    return Arrival(number, data, where, ends, deque(map(Run._make, runs)), host_step)


def _checked(
    connection: Connection, number: int, data: memoryview, max_packet: int, clock_ns: int
) -> Arrival:
    """As `checked`, with arrays."""
    sent_ns, places = wire.parse_batch(data, HEADER_BYTES)
    offset = clock_ns - sent_ns
    if connection.clock_offset_ns is not None:
        offset = min(offset, connection.clock_offset_ns)
    lines = np.frombuffer(data, _LINE)
    rows = places[:, :1] // _LINE.itemsize + np.arange(_LINES)
    headers: _Headers = lines[rows].view(HEADERS)[:, 0]
    _check_headers(headers, places)
    hooks, encodings, writers = _named(connection, headers)
    runs = _runs(headers["seq"].astype(np.int64), writers, places[:, 1] <= max_packet)
    connection.clock_offset_ns = offset
    stamps = _stamps(headers["timestamp_ns"].astype(np.int64), offset, clock_ns)
    if stamped := stamps[stamps != 0].tolist():
        connection.lag_ns = clock_ns - stamped[-1]
    headers["timestamp_ns"] = stamps
    headers["seq"] += np.array([one.shift for one in writers], np.uint64)
    headers["hook_id"], headers["encoding_id"] = hooks, encodings
    lines[rows] = headers.view(_LINE).reshape(-1, _LINES)
    ends = [0, *np.cumsum(places[:, 1]).tolist()]
    return Arrival(number, data, places, ends, runs, int(headers["host_step"].max()))


def _check_headers(headers: _Headers, places: Places) -> None:
    damaged = (
        (headers["magic"] != MAGIC)
        | (headers["version"] != VERSION)
        | (headers["flags"] > 1)
        | (headers["payload_bytes"] != (places[:, 1] - HEADER_BYTES).astype(np.uint64))
        | (headers["seq"] > wire.MAX_SEQ)
        | (headers["ndim"] > MAX_NDIM)
        | (headers["dtype"] >= len(DTYPES))
        | (headers["kind"] >= len(Kind))
        | (headers["host_step"] > _MOST)
        | (headers["timestamp_ns"] > _MOST)
    )
    if damaged.any():
        nbytes = int(places[int(damaged.argmax()), 1])
        raise WireError(Refusal.MALFORMED, f"the header of a packet of {nbytes} bytes is damaged")


def _named(connection: Connection, headers: _Headers) -> tuple[list[int], list[int], list[Writer]]:
    """This bus's ids of hooks and encodings, and the writers. Raises WireError: one was not named."""
    hook_ids, encoding_ids = headers["hook_id"].tolist(), headers["encoding_id"].tolist()
    keys = list(zip(headers["source"].tolist(), headers["shard"].tolist(), strict=True))
    try:
        return (
            [connection.hooks[one] for one in hook_ids],
            [connection.encodings[one] for one in encoding_ids],
            [connection.writers[key] for key in keys],
        )
    except KeyError as error:
        raise WireError(
            Refusal.NAMES,
            f"a packet of a hook, an encoding or a source and shard {error} that was not named",
        ) from None


def _runs(
    seqs: npt.NDArray[np.int64], writers: list[Writer], fits: npt.NDArray[np.bool_]
) -> deque[Run]:
    shards = np.array([one.shard for one in writers])  # a writer has one to itself
    breaks = (np.diff(seqs) != 1) | (np.diff(shards) != 0) | (fits[1:] != fits[:-1])
    starts = [0, *(np.flatnonzero(breaks) + 1).tolist()]
    stops = [*starts[1:], len(seqs)]
    return deque(
        Run(writers[start], int(seqs[start]), start, stop, bool(fits[start]))
        for start, stop in zip(starts, stops, strict=True)
    )


def _stamps(times: npt.NDArray[np.int64], offset_ns: int, clock_ns: int) -> npt.NDArray[np.int64]:
    """Times of the origin on this node's clock, and never in its future; 0 is none."""
    latest = min(clock_ns - offset_ns, _MOST)
    return np.where(times == 0, 0, np.maximum(1, np.minimum(times, latest) + offset_ns))


class Pusher:
    """Puts arrivals on the bus, each packet once."""

    def __init__(self, ledger: Ledger, bus: Bus) -> None:
        self._ledger, self._bus = ledger, bus
        self._room = 0, 0
        """(bytes, packets) that are left of what the bus had room for when it was asked last."""
        self.nbytes = 0
        """Of packets that were put on the bus."""

    def push(self, connection: Connection) -> bool:
        """Put what is waiting on the bus; True: all of it."""
        waiting, self._room = connection.waiting, (0, 0)
        while waiting:
            batch = waiting[0]
            while batch.runs:
                if not self._advance(connection, batch):
                    return False
            self._bus.passed(batch.host_step)
            waiting.popleft()
            connection.answered = Ack(
                batch.number, 0, connection.accepted, connection.duplicates, connection.expired,
                connection.unpushed, 0,
            )  # fmt: skip
            connection.processed += batch.data.nbytes
        return True

    def _advance(self, connection: Connection, batch: Arrival) -> bool:
        """Be done with the next few packets of a batch; False: there is no room for them."""
        run, place = batch.runs[0], batch.next
        account, seq = run.writer.account, run.seq + place - run.start
        stream, count = account.stream, min(run.stop - place, MOST_RUN)
        if seq < stream.base:
            count = min(count, stream.base - seq)
            account.count_expired(count)
            connection.expired += count
        else:
            stream.admit(seq + count - 1)
            known, count = stream.alike(seq, count)
            if known:
                account.count_duplicates(count)
                connection.duplicates += count
            elif not run.fits:
                account.count_unpushed(count)
                connection.unpushed += count
            else:
                count = self._put(run.writer, batch, seq, count)
                connection.accepted += count
        batch.next += count
        if batch.next == run.stop:
            batch.runs.popleft()
        return count > 0

    def _put(self, writer: Writer, batch: Arrival, seq: int, count: int) -> int:
        """Put the next `count` packets on the bus; how many there was room for."""
        place = batch.next
        free_bytes, free_packets = self._room
        if free_packets < 1 or free_bytes < batch.bytes_of(place, place + 1):
            # A refused offer is counted by the bus as a dropped packet: ask first.
            free_bytes, free_packets = self._bus.room()
        most = place + max(0, min(count, free_packets))
        stop = bisect_right(batch.ends, batch.ends[place] + free_bytes, place + 1, most + 1) - 1
        self._room = 0, 0
        if stop == place:
            return 0
        self._ledger.begin(writer.account, seq, stop - place)
        pushed = self._bus.push(writer.shard, batch.data, batch.places[place:stop])
        if pushed:
            self._ledger.done(writer.account, seq, pushed)
            nbytes = batch.bytes_of(place, place + pushed)
            self.nbytes += nbytes
            if place + pushed == stop:
                self._room = free_bytes - nbytes, free_packets - pushed
        else:
            self._ledger.undone()
        return pushed
