"""What a forwarder holds on to: no buffer whose batch is settled, but for those that it uses again."""

from __future__ import annotations

import gc
import weakref

from asys_bench.cluster import wire
from asys_bench.cluster.outbox import Outbox
from tests.unit.cluster.delivery_world import Ring, packet

BATCH, MOST = 4096, 16384


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
        self.outbox.offer(self.ring.pull(1), 0.0)
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
    sender.outbox.offer(sender.ring.pull(1), 0.0)
    batch = sender.outbox.next(MOST)
    assert batch is not None
    assert id(batch.buffer) in spare
