"""What a forwarder holds between its bus and its receiver: leases, batches in memory, and their account.

A lease's packets are copied into batches as they will be sent, and the lease is kept until each of its
batches is settled, but `hold_s` at most: the ring frees memory in order, so a lease that waited for an
answer would hold up every group. A batch is *unsent*, *sent* in this connection, or *doubtful*: sent in an
earlier one that left no answer. A new connection asks about those (QUERY, thousands at once), so that
nothing is sent twice for want of an answer; what the receiver does not know is sent again. Memory is bounded
by `most_bytes`: packets that find no room are dropped as `slow`. Batches are cut smaller where the receiver
will never grant as many bytes: those from before its WELCOME, and all while it shares its memory among many
connections.

The account (`Counts`), at every moment::

    taken = acked + sum(dropped) + in_flight

`taken` counts packets whose lease was acknowledged to the bus: from there on they are this process's. A
batch counts as acked or dropped when it is settled and its lease acknowledged, whichever comes last. What a
killed forwarder held is told when its successor is welcomed (`recover`): the bus says what was taken, the
receiver what it accepted; the rest is dropped as `killed`. A packet that the killed one had sent without
acknowledging the lease comes again, and the receiver calls it a duplicate: `acked` never exceeds what the
receiver accepted, and what is confirmed beyond it was `killed`. So acked <= accepted always, and equal when
nothing is in flight, but for packets that the receiver accepted and the bus then dead-lettered.

No socket, no clock and no process here: tests drive it with a receiver that is a function.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from asys_bench.cluster import wire
from asys_bench.contracts.bus import Lease
from asys_bench.contracts.packet import HEADER_BYTES

MOST_REFUSALS = 3
"""Connections that may end with a refusal of the oldest batch before it is dropped."""
MOST_KEYS = 8192
"""Of doubtful packets that are asked about at once: a lost connection may leave thousands of small batches,
and an answer takes a round trip."""


class Dropped(StrEnum):
    """Why a packet that was taken from the bus did not reach the receiver."""

    SLOW = "slow"
    """The receiver or the network is slower than the hooks: no room in `max_mib_in_flight`."""
    UNREACHABLE = "unreachable"
    """There was no receiver for `wait_s`, or none any more when the run ended."""
    KILLED = "killed"
    """This process held it and was killed."""
    TOO_LARGE = "too_large"
    """Larger than a message or than a packet of the receiver's bus may be."""
    EXPIRED = "expired"
    """So old that the receiver's ledger cannot tell whether it came."""
    REFUSED = "refused"
    """The receiver refused the message each time."""
    ELSEWHERE = "elsewhere"
    """Another forwarder of this run sends this stream to the same receiver."""
    CLOSED = "closed"
    """The run ended before the receiver had answered."""


@dataclass
class Counts:
    """The account; see the module's docstring."""

    taken: int = 0
    acked: int = 0
    dropped: dict[str, int] = field(default_factory=lambda: {str(reason): 0 for reason in Dropped})

    @property
    def in_flight(self) -> int:
        return self.taken - self.acked - sum(self.dropped.values())


class _Held:
    """A lease that is not acknowledged yet, and what became of its packets."""

    __slots__ = ("acked", "dropped", "lease", "pending", "since")

    def __init__(self, lease: Lease, since: float) -> None:
        self.lease: Lease | None = lease
        self.since = since
        self.pending = 0
        self.acked = 0
        self.dropped: dict[str, int] = {}


class Batch:
    """Packets as they travel. keys: `wire.KEYS` of each. entries: where each lies in the message. buffer:
    None once its memory was given back."""

    __slots__ = (
        "born", "buffer", "entries", "held", "keys", "nbytes", "number", "refusals", "tracker",
    )  # fmt: skip

    def __init__(
        self, buffer: memoryview, nbytes: int, keys: npt.NDArray[np.void], entries: wire.Entries,
        held: _Held, born: float,
    ) -> None:  # fmt: skip
        self.buffer: memoryview | None = buffer
        self.nbytes, self.keys, self.entries = nbytes, keys, entries
        self.held, self.born = held, born
        self.number = self.refusals = 0
        self.tracker: Any = None
        """Says when the network has let go of the buffer."""

    def message(self, number: int, clock_ns: int) -> memoryview:
        """The message, as batch `number` of a connection."""
        assert self.buffer is not None
        self.number = number
        view = self.buffer[: self.nbytes]
        wire.write_batch_head(view, number, clock_ns, self.entries)
        return view

    @property
    def is_free(self) -> bool:
        """Nobody reads its buffer any more."""
        return self.tracker is None or self.tracker.done


class Outbox:
    """See the module's docstring.

    most_bytes: of packets in memory. batch_bytes: of a batch, but for one of a single larger packet.
    """

    def __init__(self, most_bytes: int, batch_bytes: int) -> None:
        self.counts = Counts()
        self.bytes = 0
        self.max_message = self.max_packet = 1 << 62
        """What the receiver takes; from its WELCOME."""
        self.skip: Collection[int] = ()
        """Ids of streams that another forwarder sends."""
        self.packet_bytes = 0.0
        """Of a packet in a batch, with its entry in the table: the mean of late; 0 before the first."""
        self.resent = 0
        self._most, self._batch = most_bytes, batch_bytes
        self._held: deque[_Held] = deque()
        self._unsent: deque[Batch] = deque()
        self._sent: deque[Batch] = deque()
        self._doubtful: deque[Batch] = deque()
        self._forgotten = 0
        """Of the oldest doubtful ones, how many have no memory any more."""
        self._spare: list[memoryview] = []
        self._leaving: list[tuple[memoryview, Any]] = []
        self._ack = wire.Ack(0, 0, 0, 0, 0, 0, 0)
        self._elsewhere = 0
        """Accepted by receivers of other ledgers."""

    # What was before.

    def resume(self, before: Counts, delivered: int) -> None:
        """Go on after a forwarder of this name that died. delivered: what the bus counts for the group,
        before anything is pulled."""
        self.counts = before
        self.counts.taken = max(delivered, before.acked + sum(before.dropped.values()))

    def welcome(self, accepted: int, elsewhere: int) -> None:
        """A receiver has answered. accepted: packets of this forwarder in its ledger. elsewhere: acked by
        other receivers before it."""
        self._elsewhere = elsewhere
        self._ack = wire.Ack(0, accepted, 0, 0, 0, 0, 0)
        lost = self.counts.in_flight - self._alive()
        if lost > 0:  # of a predecessor
            known = min(lost, max(0, accepted + elsewhere - self.counts.acked))
            self.counts.acked += known
            self._drop(Dropped.KILLED, lost - known)

    def _alive(self) -> int:
        """Packets in flight that this process has."""
        return sum(
            len(batch.keys)
            for batches in (self._unsent, self._sent, self._doubtful)
            for batch in batches
            if batch.held.lease is None
        )

    # In.

    @property
    def room(self) -> int:
        """Bytes for further packets."""
        return self._most - self.bytes

    @property
    def batch_room(self) -> int:
        """Bytes of a batch for packets, each with its entry in the table."""
        return _room_of(min(self._batch, self.max_message))

    def offer(self, lease: Lease, headers: npt.NDArray[np.void], now: float) -> None:
        """Copy the lease's packets; it is acknowledged later, or now if there is no room for any.

        headers: of the lease, as `contracts.packet.HEADERS`.
        """
        held = _Held(lease, now)
        held.pending = 1  # until all of it is sorted in
        sizes = headers["payload_bytes"].astype(np.int64) + HEADER_BYTES
        mean = float(wire.aligned(sizes).mean()) + wire.ENTRY_BYTES
        self.packet_bytes = 0.8 * self.packet_bytes + 0.2 * mean if self.packet_bytes else mean
        chosen = self._choose(held, headers, sizes)
        for start, stop in _parts(sizes[chosen], self.batch_room):
            self._add(held, headers, sizes, chosen[start:stop], now)
        self._held.append(held)
        self._settle(held)

    def _choose(
        self, held: _Held, headers: npt.NDArray[np.void], sizes: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Which packets of a lease are sent; the others are noted."""
        alone = wire.table_end(1) + wire.aligned(sizes)
        fits = (alone <= self.max_message) & (sizes <= self.max_packet)
        if self.skip:
            elsewhere = np.isin(headers["hook_id"], list(self.skip))
            self._note(held, Dropped.ELSEWHERE, int(elsewhere.sum()))
            self._note(held, Dropped.TOO_LARGE, int((~(elsewhere | fits)).sum()))
            return np.flatnonzero(fits & ~elsewhere)
        self._note(held, Dropped.TOO_LARGE, len(fits) - int(fits.sum()))
        return np.flatnonzero(fits)

    def _add(
        self, held: _Held, headers: npt.NDArray[np.void], sizes: npt.NDArray[np.int64],
        packets: npt.NDArray[np.int64], now: float,
    ) -> None:  # fmt: skip
        """A batch of those `packets` of the lease."""
        assert held.lease is not None
        entries = wire.entries_of(sizes[packets])
        nbytes = wire.batch_end(entries)
        if self.bytes + nbytes > self._most and self.bytes:
            self._note(held, Dropped.SLOW, len(packets))
            return
        buffer = self._take(nbytes)
        held.lease.copy_frames(buffer, np.stack([packets, entries[:, 0]], axis=1))
        keys = np.empty(len(packets), wire.KEYS)
        for name in ("source", "shard", "seq"):
            keys[name] = headers[name][packets]
        held.pending += 1
        self.bytes += nbytes
        self._unsent.append(Batch(buffer, nbytes, keys, entries, held, now))

    # Out.

    def next(self, granted: int) -> Batch | None:
        """The next batch to send, if it fits into `granted` bytes."""
        while self._unsent and not self._doubtful:
            batch = self._unsent[0]
            if batch.nbytes <= min(granted, self.max_message):
                self._unsent.popleft()
                self._mark_sent(batch)
                return batch
            if not self._make_fit(batch, granted):
                break
        return None

    def _make_fit(self, batch: Batch, granted: int) -> bool:
        """Cut the first batch, which has no room as it is, or drop it; False: it waits for credit."""
        large = batch.nbytes > self.max_message
        if self._sent and not large:
            return False  # their answers bring credit
        if len(batch.keys) == 1:
            if large:
                self._give_up(self._unsent.popleft(), Dropped.TOO_LARGE)
            return large
        first = wire.batch_end(wire.entries_of(batch.entries[:1, 1]))
        if first > granted and not large:
            return False
        self._cut(batch, self.max_message if large else granted)
        return True

    def _cut(self, batch: Batch, most: int) -> None:
        """The first batch as several of at most `most` bytes, but for those of a single larger packet."""
        assert batch.buffer is not None
        self._unsent.popleft()
        source, sizes, parts = batch.buffer, batch.entries[:, 1], []
        for start, stop in _parts(sizes, _room_of(most)):
            entries = wire.entries_of(sizes[start:stop])
            nbytes = wire.batch_end(entries)
            buffer = self._take(nbytes)
            first, last = batch.entries[start, 0], batch.entries[stop - 1]
            frames = source[first : last.sum()]
            buffer[entries[0, 0] : entries[0, 0] + len(frames)] = frames
            keys = batch.keys[start:stop]
            part = Batch(buffer, nbytes, keys, entries, batch.held, batch.born)
            part.number, part.refusals = batch.number, batch.refusals
            self.bytes += nbytes
            parts.append(part)
        batch.held.pending += len(parts) - 1
        self._free(batch)
        self._unsent.extendleft(reversed(parts))

    def _mark_sent(self, batch: Batch) -> None:
        """It is sent next; with memory of its own where the last connection still reads its buffer."""
        if not batch.is_free:
            assert batch.buffer is not None
            old = batch.buffer
            batch.buffer = self._take(batch.nbytes)
            batch.buffer[: batch.nbytes] = old[: batch.nbytes]
            self._let_go(old, batch)
        self._sent.append(batch)

    def not_sent(self, batch: Batch) -> None:
        """`next` gave it last, and the network had no room."""
        self._sent.pop()
        self._unsent.appendleft(batch)

    def acknowledge(self, ack: wire.Ack) -> None:
        """Raises WireError: it does not fit what was sent."""
        before, done, packets = self._ack, [], 0
        while self._sent and self._sent[0].number <= ack.batch:
            batch = self._sent.popleft()
            done.append(batch)
            packets += len(batch.keys)
        grew = (
            ack.accepted - before.accepted,
            ack.duplicates - before.duplicates,
            ack.expired - before.expired,
            ack.unpushed - before.unpushed,
        )
        if min(grew) < 0 or sum(grew) != packets or ack.total < before.total:
            raise wire.WireError(
                wire.Refusal.MALFORMED,
                f"an answer for {sum(grew)} packets, of {packets} that were sent",
            )
        self._ack = ack
        _, _, expired, unpushed = grew
        for batch in done:  # which packet it was makes no difference to a count
            left = len(batch.keys)
            for reason, count in ((Dropped.EXPIRED, expired), (Dropped.TOO_LARGE, unpushed)):
                part = min(left, count)
                left -= part
                if part:
                    self._note(batch.held, reason, part)
                if reason is Dropped.EXPIRED:
                    expired -= part
                else:
                    unpushed -= part
            batch.held.acked += left
            self._free(batch)
            self._settle(batch.held)

    def refused(self) -> None:
        """The receiver does not take what was sent first of what it has not answered."""
        for batches in (self._doubtful, self._sent, self._unsent):
            if batches:
                first = batches[0]
                first.refusals += 1
                if first.refusals == MOST_REFUSALS:
                    self._forgotten -= first.buffer is None
                    batches.popleft()
                    self._give_up(first, Dropped.REFUSED)
                return

    def disconnected(self) -> None:
        """The connection is over: what has no answer is doubtful."""
        for batch in self._sent:
            self.resent += len(batch.keys)
        self._doubtful.extend(self._sent)
        self._sent.clear()

    @property
    def is_doubtful(self) -> bool:
        """The receiver is to be asked (`in_question`) before anything is sent."""
        return bool(self._doubtful)

    def in_question(self) -> npt.NDArray[np.void]:
        """`wire.KEYS` of the oldest doubtful batches, one at least: about `MOST_KEYS` packets at most, and no
        more than a message holds."""
        most = min(MOST_KEYS, (self.max_message - wire.HEAD_BYTES) // wire.KEYS.itemsize)
        found: list[npt.NDArray[np.void]] = []
        for batch in self._doubtful:
            most -= len(batch.keys)
            if found and most < 0:
                break
            found.append(batch.keys)
        return np.concatenate(found)

    def answered(self, known: Sequence[bool]) -> None:
        """What the receiver knows of the packets that were `in_question`."""
        at, again = 0, []
        while at < len(known):
            batch = self._doubtful.popleft()
            count = len(batch.keys)
            there = sum(known[at : at + count])
            at += count
            if batch.buffer is None:
                self._forgotten -= 1
            elif there < count:
                again.append(batch)
                continue
            batch.held.acked += there
            self._note(batch.held, Dropped.UNREACHABLE, count - there)
            self._free(batch)
            self._settle(batch.held)
        # Behind those that were asked about before them, in front of what was never sent.
        place = sum(1 for one in self._unsent if one.number) if again else 0
        self._unsent.rotate(-place)
        self._unsent.extendleft(reversed(again))
        self._unsent.rotate(place)

    # Time.

    def hold(self, before: float) -> None:
        """Acknowledge leases that are older than `before`, whatever became of their packets."""
        while self._held and (self._held[0].lease is None or self._held[0].since < before):
            held = self._held.popleft()
            if held.lease is not None:
                self._acknowledge(held)

    def expire(self, before: float) -> None:
        """There is no receiver: packets older than `before` are dropped. Of those that may have come to it,
        the memory is given back; what became of them is asked later."""
        while self._unsent and self._unsent[0].born < before:
            self._give_up(self._unsent.popleft(), Dropped.UNREACHABLE)
        while self._forgotten < len(self._doubtful):
            batch = self._doubtful[self._forgotten]
            if batch.born >= before:
                break
            self._free(batch)
            self._forgotten += 1

    def close(self, reason: Dropped) -> None:
        """What is not settled is dropped, and every lease acknowledged."""
        self._forgotten = 0
        for batches in (self._doubtful, self._sent, self._unsent):
            while batches:
                self._give_up(batches.popleft(), reason)
        while self._held:
            held = self._held.popleft()
            if held.lease is not None:
                self._acknowledge(held)
        if (
            lost := self.counts.in_flight
        ) > 0:  # of a predecessor, and nobody was there to be asked
            self._drop(Dropped.KILLED, lost)

    @property
    def is_empty(self) -> bool:
        return not (self._unsent or self._sent or self._doubtful)

    @property
    def oldest(self) -> float | None:
        """When the oldest packet without an answer was pulled."""
        ages = [b[0].born for b in (self._unsent, self._sent, self._doubtful) if b]
        return min(ages, default=None)

    # The account.

    def _note(self, held: _Held, reason: Dropped, count: int = 1) -> None:
        if count:
            held.dropped[reason] = held.dropped.get(reason, 0) + count

    def _give_up(self, batch: Batch, reason: Dropped) -> None:
        self._note(batch.held, reason, len(batch.keys))
        self._free(batch)
        self._settle(batch.held)

    def _settle(self, held: _Held) -> None:
        """One batch less is open."""
        held.pending -= 1
        if held.lease is None:
            self._publish(held)
        elif held.pending == 0:
            self._acknowledge(held)

    def _acknowledge(self, held: _Held) -> None:
        lease, held.lease = held.lease, None
        assert lease is not None
        self.counts.taken += lease.release()
        self._publish(held)

    def _publish(self, held: _Held) -> None:
        """What is known of an acknowledged lease's packets goes into the account."""
        confirmed, held.acked = held.acked, 0
        acked = min(confirmed, max(0, self._ack.total + self._elsewhere - self.counts.acked))
        self.counts.acked += acked
        self._drop(Dropped.KILLED, confirmed - acked)
        for reason, count in held.dropped.items():
            self._drop(reason, count)
        held.dropped = {}

    def _drop(self, reason: str, count: int) -> None:
        if count:
            self.counts.dropped[str(reason)] += count

    # Memory.

    def _take(self, nbytes: int) -> memoryview:
        """A buffer of a batch; full-sized ones are used again, because fresh memory costs page faults."""
        if self._leaving:
            leaving, self._leaving = self._leaving, []
            for buffer, tracker in leaving:
                if tracker.done:
                    self._keep_spare(buffer)
                else:
                    self._leaving.append((buffer, tracker))
        if 2 * nbytes < self._batch or nbytes > self._batch:
            return _aligned(nbytes)
        return self._spare.pop() if self._spare else _aligned(self._batch)

    def _keep_spare(self, buffer: memoryview) -> None:
        if len(self._spare) * self._batch < self._most:
            self._spare.append(buffer)

    def _let_go(self, buffer: memoryview, batch: Batch) -> None:
        """A full-sized buffer is used again, once the network has let go of it as well."""
        if len(buffer) != self._batch:
            return
        if batch.is_free:
            self._keep_spare(buffer)
        else:
            self._leaving.append((buffer, batch.tracker))

    def _free(self, batch: Batch) -> None:
        if batch.buffer is None:
            return
        self.bytes -= batch.nbytes
        self._let_go(batch.buffer, batch)
        batch.buffer = None


def _room_of(message_bytes: int) -> int:
    """Bytes of a message for packets, each with its entry in the table."""
    return message_bytes - wire.table_end(0) - wire.ALIGNMENT


def _parts(sizes: npt.NDArray[np.int64], room: int) -> Iterator[tuple[int, int]]:
    """Packets of these sizes as batches with `room`: (first, after the last) of each."""
    ends = np.cumsum(wire.aligned(sizes) + wire.ENTRY_BYTES).tolist()
    start = before = 0
    while start < len(ends):
        last = min(len(ends), start + wire.MAX_PACKETS)
        stop = max(start + 1, bisect_right(ends, before + room, start, last))
        yield start, stop
        start, before = stop, ends[stop - 1]


def _aligned(nbytes: int) -> memoryview:
    """New memory, zeroed, from a multiple of 64 on: frames of 64 KiB are copied faster to there."""
    memory = np.zeros(nbytes + wire.ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % wire.ALIGNMENT
    return memory[start : start + nbytes].data
