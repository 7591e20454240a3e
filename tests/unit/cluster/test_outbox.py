"""What a forwarder holds: batches of whole frames, and no buffer whose batch is settled but spare ones."""

from __future__ import annotations

import gc
import weakref

import numpy as np

from asys_bench.cluster import wire
from asys_bench.cluster.outbox import Batch, Dropped, Outbox
from asys_bench.contracts.bus import Lease
from asys_bench.contracts.packet import HEADERS, ActivationPacket
from tests.unit.cluster.delivery_world import Ring, packet

BATCH, MOST = 4096, 16384


def offer(outbox: Outbox, lease: Lease) -> None:
    outbox.offer(lease, np.frombuffer(lease.headers(), HEADERS), 0.0)


class Tracker:
    """The network's hold on a buffer."""

    done = False


class Sender:
    """An outbox whose receiver acknowledges each batch at once, while the network still holds it."""

    def __init__(self) -> None:
        self.ring, self.outbox = Ring(), Outbox(MOST, BATCH)
        self.seq = 0

    def send(self, nbytes: int) -> Tracker:
        self.ring.push(packet((0, 0, self.seq), nbytes))
        self.seq += 1
        offer(self.outbox, self.ring.pull(1))
        batch = self.outbox.next(MOST)
        assert batch is not None
        batch.message(self.seq, 0)
        tracker = batch.tracker = Tracker()
        self.outbox.acknowledge(wire.Ack(self.seq, self.seq, self.seq, 0, 0, 0, MOST))
        return tracker


def test_of_small_batches_nothing_is_kept_once_they_are_acknowledged():
    sender = Sender()
    held = [weakref.ref(sender.send(500)) for _ in range(20)]
    gc.collect()
    assert [one() for one in held] == [None] * 20


def test_of_large_ones_as_many_buffers_are_used_again_as_may_be_in_flight():
    sender = Sender()
    trackers = [sender.send(3000) for _ in range(10)]
    for one in trackers:
        one.done = True
    del trackers, one
    sender.send(500)
    assert sender.outbox._leaving == []
    assert len(sender.outbox._spare) == MOST // BATCH
    spare = {id(buffer) for buffer in sender.outbox._spare}
    sender.ring.push(packet((0, 0, sender.seq), 3000))
    offer(sender.outbox, sender.ring.pull(1))
    batch = sender.outbox.next(MOST)
    assert batch is not None
    assert id(batch.buffer) in spare


def test_a_lease_is_cut_into_full_batches_that_hold_it_frame_by_frame():
    ring, outbox = Ring(), Outbox(1 << 20, BATCH)
    packets = [packet((seq % 2, 0, seq), 700 + seq, hook=1 + seq % 2) for seq in range(11)]
    for one in packets:
        ring.push(one)
    offer(outbox, ring.pull(11))
    found, sizes = [], []
    while (batch := outbox.next(1 << 20)) is not None:
        message = batch.message(len(sizes) + 1, 5)
        sizes.append(message.nbytes)
        _, entries = wire.parse_batch(message, 128)
        frames = [message[at : at + size] for at, size in entries.tolist()]
        found += [ActivationPacket.unpack(frame) for frame in frames]
        keys = [tuple(key) for key in batch.keys.tolist()]
        assert keys == [(one.source, one.shard, one.seq) for one in found[-len(frames) :]]
    assert found == packets
    assert len(sizes) == 3
    assert max(sizes) <= BATCH


def test_streams_of_others_and_packets_that_are_too_large_are_counted_and_left_out():
    ring, outbox = Ring(), Outbox(1 << 20, BATCH)
    outbox.skip, outbox.max_packet = {2}, 1000
    for seq, (nbytes, hook) in enumerate([(10, 1), (10, 2), (2000, 1), (20, 1), (2000, 2)]):
        ring.push(packet((0, 0, seq), nbytes, hook))
    offer(outbox, ring.pull(5))
    batch = outbox.next(1 << 20)
    assert batch is not None
    assert batch.keys["seq"].tolist() == [0, 3]
    batch.message(1, 0)
    outbox.acknowledge(wire.Ack(1, 2, 2, 0, 0, 0, 1 << 20))
    assert outbox.counts.acked == 2
    dropped = {reason: count for reason, count in outbox.counts.dropped.items() if count}
    assert dropped == {"elsewhere": 2, "too_large": 1}


def frames_in(batch: Batch, number: int) -> list[ActivationPacket]:
    message = batch.message(number, 5)
    _, entries = wire.parse_batch(message, 128)
    return [ActivationPacket.unpack(message[at : at + size]) for at, size in entries.tolist()]


def test_a_batch_of_more_than_the_receiver_ever_grants_is_cut_once_no_answer_is_due():
    ring, outbox = Ring(), Outbox(1 << 20, BATCH)
    packets = [packet((0, 0, seq), 700) for seq in range(4)]
    for one in packets:
        ring.push(one)
    offer(outbox, ring.pull(4))
    assert outbox.next(800) is None  # not one packet: it stays whole
    first = outbox.next(2000)
    assert first is not None
    assert frames_in(first, 1) == packets[:2]
    assert outbox.next(1000) is None  # its answer brings credit
    outbox.acknowledge(wire.Ack(1, 2, 2, 0, 0, 0, 4000))
    second = outbox.next(2000)
    assert second is not None
    assert frames_in(second, 2) == packets[2:]
    outbox.acknowledge(wire.Ack(2, 4, 4, 0, 0, 0, 6000))
    assert (outbox.bytes, outbox.counts.acked, outbox.counts.in_flight) == (0, 4, 0)
    assert ring.delivered == {(0, 0, seq) for seq in range(4)}


def test_batches_from_before_the_welcome_are_cut_to_what_it_says_and_larger_packets_dropped():
    ring, outbox = Ring(), Outbox(1 << 20, BATCH)
    packets = [packet((0, 0, seq), nbytes) for seq, nbytes in enumerate((100, 1500, 100, 100))]
    for one in packets:
        ring.push(one)
    offer(outbox, ring.pull(4))
    outbox.max_message = 1024
    found, number = [], 0
    while (batch := outbox.next(1 << 20)) is not None:
        number += 1
        assert batch.nbytes <= 1024
        found += frames_in(batch, number)
    assert found == [packets[0], *packets[2:]]
    outbox.acknowledge(wire.Ack(number, 3, 3, 0, 0, 0, 1 << 20))
    assert outbox.counts.dropped[Dropped.TOO_LARGE] == 1
    assert (outbox.bytes, outbox.counts.taken, outbox.counts.in_flight) == (0, 4, 0)


class Lost:
    """An outbox that sent packets one by one, each a batch, and lost its connection."""

    def __init__(self, packets: int) -> None:
        self.ring, self.outbox, self.seq = Ring(), Outbox(1 << 20, BATCH), 0
        for _ in range(packets):
            self.take()
        self.sent = self.send()
        self.outbox.disconnected()

    def take(self, now: float = 0.0) -> None:
        self.ring.push(packet((0, 0, self.seq), 100))
        self.seq += 1
        lease = self.ring.pull(1)
        self.outbox.offer(lease, np.frombuffer(lease.headers(), HEADERS), now)

    def send(self) -> list[int]:
        found: list[int] = []
        while (batch := self.outbox.next(1 << 20)) is not None:
            batch.message(len(found) + 1, 5)
            found += batch.keys["seq"].tolist()
        return found


def test_a_lost_connection_with_many_small_batches_is_one_question_and_what_is_new_comes_last():
    lost = Lost(300)
    lost.take()
    assert lost.outbox.next(1 << 20) is None
    assert lost.outbox.in_question()["seq"].tolist() == lost.sent == list(range(300))
    lost.outbox.welcome(100, 0)
    lost.outbox.answered([seq % 3 == 0 for seq in range(300)])
    assert not lost.outbox.is_doubtful
    assert lost.outbox.counts.acked == 100
    assert lost.send() == [*(seq for seq in range(300) if seq % 3), 300]


def test_a_question_is_no_larger_than_a_message_and_those_behind_it_keep_their_order():
    lost = Lost(25)
    lost.outbox.max_message = wire.HEAD_BYTES + 10 * wire.KEYS.itemsize
    asked = []
    while lost.outbox.is_doubtful:
        keys = lost.outbox.in_question()["seq"].tolist()
        asked.append(len(keys))
        lost.outbox.answered([False] * len(keys))
    assert asked == [10, 10, 5]
    lost.outbox.max_message = 1 << 20
    assert lost.send() == list(range(25))


def test_memory_of_what_is_doubtful_is_given_back_once_and_what_never_came_is_unreachable():
    lost = Lost(20)
    lost.take(now=9.0)
    outbox = lost.outbox
    outbox.expire(1.0)
    assert outbox.bytes == 256 + 64  # the new one
    for _ in range(2):
        outbox.refused()
    outbox.expire(1.0)
    outbox.refused()  # the third time: it is dropped
    keys = outbox.in_question()
    outbox.welcome(5, 0)
    outbox.answered([seq < 6 for seq in keys["seq"].tolist()])
    dropped = {reason: count for reason, count in outbox.counts.dropped.items() if count}
    assert (outbox.counts.acked, dropped) == (5, {"refused": 1, "unreachable": 14})
    assert lost.send() == [20]
    outbox.disconnected()
    outbox.expire(10.0)
    assert (outbox.bytes, len(outbox.in_question())) == (0, 1)
