"""Leases: memory is never reused under a reader, and a failed reader gives its packets back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from asys_bench.contracts.bus import MAX_DELIVERIES, BusError, Delivery, GroupSpec
from asys_bench.contracts.packet import ActivationPacket

from .support import (
    Buses,
    body_of,
    drain,
    eventually,
    is_whole,
    meta_of,
    pull_numbers,
    pull_some,
    push_numbers,
    settled,
)

ARCHIVE = GroupSpec("archive", Delivery.AT_LEAST_ONCE)


@pytest.mark.parametrize(
    "view",
    [
        lambda packet: np.frombuffer(packet.payload, np.uint8),
        lambda packet: np.asarray(packet.payload)[10:20],
        lambda packet: packet.raw_tensor(),
        lambda packet: packet.raw_tensor()[5:].reshape(5, -1),
        lambda packet: packet.payload[3:7],
    ],
    ids=["numpy", "numpy-slice", "tensor", "tensor-view", "memoryview"],
)
def test_leaving_a_lease_with_a_live_view_is_refused_until_it_is_dropped(
    make_bus: Buses, view: Callable[[ActivationPacket], object]
) -> None:
    bus = make_bus()
    producer = bus.producer()
    push_numbers(producer, 0, 3)
    with bus.subscribe("train", "a") as reader:
        lease = pull_some(reader)
        count = len(lease)
        alive = view(lease.packets[0])
        with pytest.raises(BufferError):
            lease.release()
        push_numbers(producer, 3, 20)  # nothing may be written over the view
        assert [packet.host_step for packet in lease] == list(range(count))
        assert all(is_whole(packet) for packet in lease), "the lease was not kept"
        del alive
        assert lease.release() == count
        settled(bus, "train", delivered=count)
        assert pull_numbers(reader, 23 - count)[0] == count
        settled(bus, "train", delivered=23)


def test_a_with_block_left_with_a_live_view_raises_and_keeps_the_lease(make_bus: Buses) -> None:
    bus = make_bus()
    push_numbers(bus.producer(), 0, 1)
    with bus.subscribe("train", "a") as reader:
        lease = pull_some(reader)
        with pytest.raises(BufferError), lease:
            kept = np.frombuffer(lease.packets[0].payload, np.uint8)
        assert kept.tobytes() == body_of(0, 100)
        del kept
        assert lease.release() == 1


def test_a_reader_may_hold_several_leases_and_release_them_in_any_order(make_bus: Buses) -> None:
    bus = make_bus()
    push_numbers(bus.producer(), 0, 30)
    with bus.subscribe("train", "a") as reader:
        leases = []
        while sum(map(len, leases)) < 30:
            leases.append(pull_some(reader, most=7))
        assert all(is_whole(packet) for lease in leases for packet in lease)
        assert [packet.host_step for lease in leases for packet in lease] == list(range(30))
        for lease in (*leases[1::2], *reversed(leases[::2])):
            assert lease.release() == len(lease)
        settled(bus, "train", delivered=30)


def test_a_packet_kept_past_its_lease_has_no_payload_any_more(make_bus: Buses) -> None:
    bus = make_bus()
    push_numbers(bus.producer(), 0, 1)
    with bus.subscribe("train", "a") as reader:
        with pull_some(reader) as lease:
            packet = lease.packets[0]
            payload = packet.payload
        del lease
        with pytest.raises(ValueError, match="released"):
            bytes(payload)
        assert packet.host_step == 0


def test_releasing_twice_counts_once(make_bus: Buses) -> None:
    bus = make_bus()
    push_numbers(bus.producer(), 0, 2)
    with bus.subscribe("train", "a") as reader:
        with pull_some(reader) as lease:
            assert lease.release() == len(lease)
        pull_numbers(reader, 2 - len(lease))
        settled(bus, "train", delivered=2, ready=0)


def test_an_at_least_once_batch_whose_reader_failed_comes_again(make_bus: Buses) -> None:
    bus = make_bus(ARCHIVE)
    push_numbers(bus.producer(), 0, 4)
    with bus.subscribe("archive", "a") as reader:
        lease = pull_some(reader)
        count = len(lease)
        with pytest.raises(ZeroDivisionError), lease:
            raise ZeroDivisionError
        assert sorted(pull_numbers(reader, 4)) == [0, 1, 2, 3]
        settled(bus, "archive", delivered=4, lost_in_flight=0, redelivered=count)


def test_an_at_most_once_batch_whose_reader_failed_is_counted_lost(make_bus: Buses) -> None:
    bus = make_bus()
    push_numbers(bus.producer(), 0, 4)
    with bus.subscribe("train", "a") as reader:
        lease = pull_some(reader, most=2)
        count = len(lease)
        lease.give_back()
        assert pull_numbers(reader, 4 - count) == list(range(count, 4))
        settled(bus, "train", delivered=4 - count, lost_in_flight=count)


def test_a_packet_that_always_fails_is_dead_lettered(make_bus: Buses) -> None:
    bus = make_bus(ARCHIVE)
    push_numbers(bus.producer(), 0, 2)
    with bus.subscribe("archive", "a") as reader:
        for _ in range(MAX_DELIVERIES):
            lease = pull_some(reader, most=1)
            assert [packet.host_step for packet in lease] == [0]
            lease.give_back()
            settled(bus, "archive", delivered=0)
        settled(bus, "archive", dead_lettered=1, ready=1)
        assert pull_numbers(reader, 1) == [1]
        bus.finish()
        assert drain(reader) == []
        settled(bus, "archive", delivered=1, dead_lettered=1, ready=0)


@pytest.mark.parametrize("delivery", list(Delivery))
def test_a_member_that_leaves_with_a_lease_counts_as_dead(
    make_bus: Buses, delivery: Delivery
) -> None:
    bus = make_bus(GroupSpec("group", delivery))
    push_numbers(bus.producer(), 0, 6)
    leaver = bus.subscribe("group", "leaver")
    lease = pull_some(leaver, most=3)
    count = len(lease)
    leaver.close()
    leaver.close()
    assert lease.release() == 0, "those results must be dropped"
    with bus.subscribe("group", "stayer") as reader:
        if delivery is Delivery.AT_LEAST_ONCE:
            assert sorted(pull_numbers(reader, 6)) == list(range(6))
            settled(bus, "group", delivered=6, lost_in_flight=0)
        else:
            assert pull_numbers(reader, 6 - count) == list(range(count, 6))
            settled(bus, "group", delivered=6 - count, lost_in_flight=count)
    with pytest.raises(BusError):
        leaver.pull_batch(1, 0.0)


def test_several_leases_are_held_and_released_in_any_order(make_bus: Buses) -> None:
    bus = make_bus(packets=64)
    producer = bus.producer()
    push_numbers(producer, 0, 9)
    with bus.subscribe("train", "a") as reader:
        leases = [pull_some(reader, most=3) for _ in range(3)]
        held = sum(len(lease) for lease in leases)
        assert leases[1].release() == len(leases[1])
        assert leases[2].release() == len(leases[2])
        assert all(is_whole(packet) for packet in leases[0])
        assert leases[0].release() == len(leases[0])
        settled(bus, "train", delivered=held)
        pull_numbers(reader, 9 - held)
        eventually(lambda: bus.fill_ratio() == 0.0, "an empty bus")


def test_writing_while_a_lease_is_held_never_changes_it(make_bus: Buses) -> None:
    bus = make_bus(packets=16, nbytes=64 << 10)
    producer = bus.producer()
    push_numbers(producer, 0, 4, 2000)
    with bus.subscribe("train", "a") as reader:
        lease = pull_some(reader, most=4)
        number = 4
        for _ in range(200):
            if producer.try_push(meta_of(number, 2000), body_of(number, 2000)):
                number += 1
        assert all(is_whole(packet) for packet in lease)
        assert torch.equal(
            lease.packets[0].raw_tensor().clone(),
            torch.frombuffer(bytearray(body_of(0, 2000)), dtype=torch.uint8),
        )
        count = len(lease)
        lease.release()
        assert pull_numbers(reader, number - count) == list(range(count, number))
        settled(bus, "train", delivered=number)
