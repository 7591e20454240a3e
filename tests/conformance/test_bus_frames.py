"""Frames of whole batches: out of a lease, and onto a bus, as one packet at a time would do it."""

from __future__ import annotations

import numpy as np
import pytest

from asys_bench.contracts.bus import BaseDataBus, BusError, BusSubscription
from asys_bench.contracts.origin import ORIGIN, restored, ring_meta
from asys_bench.contracts.packet import (
    HEADER_BYTES,
    HEADERS,
    ActivationPacket,
    PacketMeta,
    pack_header_into,
)

from .support import (
    U8,
    Buses,
    body_of,
    is_whole,
    meta_of,
    pull_numbers,
    pull_some,
    push_numbers,
    settled,
)

SIZES = [0, 1, 64, 100, 5000, 70_000, 3]


def frames_of(
    sizes: list[int], bus: BaseDataBus, gap: int = 8
) -> tuple[bytearray, np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
    """Frames as another node's bus made them, and where they lie."""
    hooks = [bus.intern("layer.a"), bus.intern("layer.b")]
    data, places = bytearray(), []
    for number, nbytes in enumerate(sizes):
        data += bytes(gap)
        at = len(data)
        data += bytes(HEADER_BYTES) + body_of(number, nbytes)
        meta = PacketMeta(
            hooks[number % 2], number % 3, U8, (nbytes,), host_step=number, sampling_rate=0.5
        )
        pack_header_into(data, at, meta, seq=7 + number, shard=3, source=9, payload_bytes=nbytes)
        places.append((at, HEADER_BYTES + nbytes))
    return data, np.array(places, np.int64).reshape(-1, 2)


def test_headers_and_copied_frames_say_what_the_packets_say(make_bus: Buses) -> None:
    bus = make_bus(shards=2)
    producers = [bus.producer(shard) for shard in range(2)]
    for number, nbytes in enumerate(SIZES):
        meta = meta_of(number, nbytes, bus.intern("layer.b"))._replace(token_position=5, text=2)
        assert producers[number % 2].try_push(meta, body_of(number, nbytes))
    seen = 0
    with bus.subscribe("train", "a") as reader:
        while seen < len(SIZES):
            with pull_some(reader) as lease:
                headers = np.frombuffer(lease.headers(), HEADERS)
                sizes = headers["payload_bytes"].astype(np.int64) + HEADER_BYTES
                order = np.arange(len(lease))[::-1]
                ends = np.cumsum(sizes[order]) + 11
                out = bytearray(int(ends[-1]) + 5)
                places = np.stack([order, ends - sizes[order]], axis=1)
                lease.copy_frames(memoryview(out), places)
                for index, at in places.tolist():
                    frame = memoryview(out)[at : at + int(sizes[index])]
                    assert ActivationPacket.unpack(frame) == lease.packets[index]
                    assert headers["seq"][index] == lease.packets[index].seq
                assert out[:11] == bytes(11)
                assert out[-5:] == bytes(5)
                seen += len(lease)
        settled(bus, "train", delivered=len(SIZES))


def test_places_outside_the_lease_or_the_memory_are_refused_and_the_lease_is_kept(
    make_bus: Buses,
) -> None:
    bus = make_bus()
    push_numbers(bus.producer(), 0, 1)
    with bus.subscribe("train", "a") as reader:
        lease = pull_some(reader)
        out = bytearray(HEADER_BYTES + 100)
        for place in ((1, 0), (-1, 0), (0, 1), (0, -1), (0, 1 << 62)):
            with pytest.raises(ValueError):
                lease.copy_frames(memoryview(out), np.array([place], np.int64))
        lease.copy_frames(memoryview(out), np.array([(0, 0)], np.int64))
        assert is_whole(ActivationPacket.unpack(memoryview(out)))
        lease.copy_frames(memoryview(out), np.empty((0, 2), np.int64))
        assert lease.release() == 1
        with pytest.raises((BusError, ValueError)):
            lease.headers()
        with pytest.raises((BusError, ValueError)):
            lease.copy_frames(memoryview(out), np.array([(0, 0)], np.int64))


@pytest.mark.parametrize("checksum", [False, True])
def test_pushed_frames_are_packets_of_their_own_hooks_and_are_restored(
    make_bus: Buses, checksum: bool
) -> None:
    bus = make_bus(checksum=checksum, source=4)
    origin = bus.intern(ORIGIN)
    data, places = frames_of(SIZES, bus)
    producer = bus.producer()
    taken = producer.try_push_frames(ring_meta(origin), memoryview(data), places)
    assert taken == len(SIZES)
    assert producer.last_refusal is None
    seen = 0
    with bus.subscribe("train", "a") as reader:
        while seen < len(SIZES):
            with pull_some(reader) as lease:
                for packet in lease:
                    at, nbytes = places[seen].tolist()
                    frame = ActivationPacket.unpack(memoryview(data)[at : at + nbytes])
                    assert restored(packet) == frame
                    assert (packet.hook_id, packet.kind) == (frame.hook_id, frame.kind)
                    assert (packet.source, packet.seq, packet.shape) == (4, seen, (nbytes,))
                    assert packet.encoding_id == origin
                    assert packet.verify()
                    assert (packet.crc is not None) == checksum
                    seen += 1
                del packet
        settled(bus, "train", delivered=len(SIZES))


def test_a_full_bus_takes_the_first_frames_and_counts_one_refusal(make_bus: Buses) -> None:
    bus = make_bus(packets=8, nbytes=8 << 10)
    data, places = frames_of([1000] * 100, bus)
    producer = bus.producer()
    meta = ring_meta(bus.intern(ORIGIN))
    taken = producer.try_push_frames(meta, memoryview(data), places)
    assert 0 < taken < 100
    assert producer.last_refusal is not None
    account = bus.account()
    assert (account.produced, account.dropped_total) == (taken + 1, 1)
    with bus.subscribe("train", "a") as reader:
        assert pull_frames(reader, taken) == list(range(taken))
        settled(bus, "train", delivered=taken)
        again = producer.try_push_frames(meta, memoryview(data), places[taken:])
        assert again > 0
        assert pull_frames(reader, again) == list(range(taken, taken + again))
        settled(bus, "train", delivered=taken + again)


def pull_frames(reader: BusSubscription, count: int) -> list[int]:
    """Host steps of restored packets, which are whole."""
    steps: list[int] = []
    while len(steps) < count:
        with pull_some(reader) as lease:
            for packet in lease:
                frame = restored(packet)
                assert is_whole(frame)
                steps.append(frame.host_step)
                del frame
            del packet
    return steps


def test_frames_that_do_not_lie_in_the_memory_are_refused_and_nothing_is_pushed(
    make_bus: Buses,
) -> None:
    bus = make_bus()
    producer = bus.producer()
    data, places = frames_of([10, 10], bus)
    meta = ring_meta(bus.intern(ORIGIN))
    first = places[0].tolist()
    for wrong in ((len(data), 128), (-8, 200), (0, 127), (0, -1), (1 << 62, 128), (0, 1 << 40)):
        with pytest.raises(ValueError):
            producer.try_push_frames(meta, memoryview(data), np.array([first, wrong], np.int64))
    assert bus.account().produced == 0
    assert producer.try_push_frames(meta, memoryview(data), places[:0]) == 0
    push_numbers(producer, 0, 3)  # the producer is as it was
    with bus.subscribe("train", "a") as reader:
        assert pull_numbers(reader, 3) == [0, 1, 2]


def test_frames_come_between_other_packets_in_the_order_of_the_calls(make_bus: Buses) -> None:
    bus = make_bus()
    producer = bus.producer()
    meta = ring_meta(bus.intern(ORIGIN))
    data, places = frames_of([200] * 5, bus)
    push_numbers(producer, 0, 2)
    assert producer.try_push_frames(meta, memoryview(data), places) == 5
    push_numbers(producer, 2, 2)
    seqs: list[int] = []
    sizes: list[int] = []
    with bus.subscribe("train", "a") as reader:
        while len(seqs) < 9:
            with pull_some(reader) as lease:
                seqs += [packet.seq for packet in lease]
                sizes += [packet.payload.nbytes for packet in lease]
    assert seqs == list(range(9))
    assert sizes == [100] * 2 + [328] * 5 + [100] * 2
