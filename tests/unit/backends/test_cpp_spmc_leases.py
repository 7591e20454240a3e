"""Leases, reservations and groups of CppShardedSPMCBus, in one process."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from asys_bench.backends.cpp_spmc.plugin import plugin
from asys_bench.contracts.bus import (
    MAX_DELIVERIES,
    BaseDataBus,
    BusError,
    BusRequest,
    Delivery,
    DropReason,
    GroupSpec,
    Lease,
    Reservation,
)
from asys_bench.contracts.packet import (
    DTYPE_CODE,
    PacketError,
    PacketMeta,
)

if plugin.unavailable() is not None:
    pytest.skip(str(plugin.unavailable()), allow_module_level=True)

TRAIN = GroupSpec("train")
ARCHIVE = GroupSpec("archive", Delivery.AT_LEAST_ONCE)
META = PacketMeta(0, 0, DTYPE_CODE[torch.uint8], (64,))
BYTES = bytes(range(64))


@contextmanager
def open_bus(
    *groups: GroupSpec, options: dict[str, Any] | None = None, **request: Any
) -> Iterator[BaseDataBus]:
    request.setdefault("capacity_packets", 64)
    request.setdefault("capacity_bytes", 1 << 20)
    bus = plugin.build(
        BusRequest(groups or (TRAIN,), options=plugin.options(**(options or {})), **request)
    )
    with bus:
        yield bus


def assert_balanced(bus: BaseDataBus) -> None:
    account = bus.account()
    assert [account.imbalance(group) for group in account.groups] == [0] * len(account.groups)


@pytest.mark.parametrize("make", [
    lambda packet: np.frombuffer(packet.payload, np.uint8),
    lambda packet: packet.payload[3:5],
    lambda packet: packet.raw_tensor(),
    lambda packet: memoryview(packet.payload),
], ids=["ndarray", "slice", "tensor", "memoryview"])  # fmt: skip
def test_leaving_a_lease_with_a_live_view_raises_and_keeps_the_lease(make: Any) -> None:
    with open_bus() as bus:
        bus.push(META, BYTES)
        lease = bus.pull_batch("train")
        view = make(lease.packets[0])
        with pytest.raises(BufferError, match="alive"), lease:
            pass
        assert bytes(lease.packets[0].payload) == BYTES
        assert bus.account().group("train").ready == 1
        del view
        assert lease.release() == 1
        assert lease.release() == 1
        assert bus.account().group("train").delivered == 1


def test_a_loop_variable_does_not_keep_the_lease_but_its_payload_is_closed() -> None:
    with open_bus() as bus:
        bus.push(META, BYTES)
        with bus.pull_batch("train") as lease:
            for packet in lease:
                assert len(packet.payload) == 64
        with pytest.raises(ValueError, match="released"):
            bytes(packet.payload)
        assert packet.seq == 0


def test_payload_views_are_read_only() -> None:
    with open_bus() as bus:
        bus.push(META, BYTES)
        with bus.pull_batch("train") as lease:
            assert lease.packets[0].payload.readonly
            array = np.frombuffer(lease.packets[0].payload, np.uint8)
            assert not array.flags.writeable
            with pytest.raises(ValueError, match="WRITEABLE"):
                array.flags.writeable = True
            del array


def test_a_batch_push_comes_back_as_a_packet_per_row() -> None:
    rows = torch.arange(32 * 48, dtype=torch.float32).reshape(32, 48)
    with open_bus() as bus:
        assert bus.producer(0).try_push_many(META, rows) == 32
        with bus.pull_batch("train") as lease:
            assert len(lease) == 32
            came = np.stack([np.frombuffer(packet.payload, np.float32) for packet in lease])
            assert np.array_equal(came, rows.numpy())
            assert [packet.seq for packet in lease] == list(range(32))


def test_a_batch_push_stops_at_the_first_refusal_and_counts_it() -> None:
    with open_bus(capacity_packets=8) as bus:
        producer = bus.producer(0)
        assert producer.try_push_many(META, np.zeros((20, 64), np.uint8)) == 8
        assert producer.last_refusal is DropReason.FULL
        account = bus.account()
        assert (account.produced, account.dropped_total) == (9, 1)


def test_leases_and_reservations_are_instances_of_the_contract() -> None:
    with open_bus() as bus:
        reservation = bus.producer(0).reserve(8)
        assert isinstance(reservation, Reservation)
        reservation.abort()
        assert isinstance(bus.pull_batch("train", timeout_s=0), Lease)


def test_a_reservation_is_written_in_place_and_may_shrink_or_be_aborted() -> None:
    with open_bus(checksum=True) as bus:
        producer = bus.producer(0)
        reservation = producer.reserve(100)
        assert reservation is not None
        with pytest.raises(BusError, match="reservation"):
            producer.try_push(META, BYTES)
        reservation.view[:5] = b"hello"
        with pytest.raises(PacketError):
            reservation.commit(META, 101)
        assert reservation.commit(META, 5)
        with pytest.raises(BusError):
            reservation.commit(META)
        aborted = producer.reserve(10)
        assert aborted is not None
        aborted.abort()
        assert producer.reserve(1 << 21) is None
        assert producer.last_refusal is DropReason.TOO_LARGE
        with bus.pull_batch("train") as lease:
            assert [bytes(packet.payload) for packet in lease] == [b"hello"]
            assert lease.packets[0].verify()
        assert bus.account().produced == 2
        assert_balanced(bus)


def test_a_body_that_raises_gives_back_and_five_deliveries_end_in_dead_letters() -> None:
    def fail(group: str) -> int:
        with bus.pull_batch(group, timeout_s=0) as lease:
            held = len(lease)
            lease.packets  # noqa: B018 - views exist when the body fails
            raise ZeroDivisionError(held)

    with open_bus(TRAIN, ARCHIVE) as bus:
        bus.push(META, BYTES)
        held = []
        for group in ["train", "train", *["archive"] * (MAX_DELIVERIES + 1)]:
            with pytest.raises(ZeroDivisionError) as error:
                fail(group)
            held.append(error.value.args[0])
        assert held == [1, 0] + [1] * MAX_DELIVERIES + [0]
        account = bus.account()
        assert account.group("train").lost_in_flight == 1
        assert account.group("archive").dead_lettered == 1
        assert account.group("archive").redelivered == MAX_DELIVERIES - 1
        assert_balanced(bus)


def test_counters_stay_exact_after_their_packets_left_the_ring() -> None:
    with open_bus(TRAIN, ARCHIVE, capacity_packets=4) as bus:
        for index in range(40):
            assert bus.push(META, BYTES)
            for group in ("train", "archive"):
                lease = bus.pull_batch(group)
                if index % 4 == 0:
                    lease.give_back()
                    lease = bus.pull_batch(group, timeout_s=0)
                lease.release()
        account = bus.account()
        train, archive = account.group("train"), account.group("archive")
        assert (train.delivered, train.lost_in_flight) == (30, 10)
        assert (archive.delivered, archive.redelivered) == (40, 10)
        assert_balanced(bus)


def test_closing_a_subscription_with_a_lease_redelivers_or_loses_its_packets() -> None:
    with open_bus(TRAIN, ARCHIVE) as bus:
        bus.push(META, BYTES)
        leases = []
        for group in ("train", "archive"):
            subscription = bus.subscribe(group, "leaver")
            leases.append(subscription.pull_batch())
            subscription.close()
        assert [lease.release() for lease in leases] == [0, 0]
        account = bus.account()
        assert account.group("train").lost_in_flight == 1
        assert account.group("archive").ready == 1
        assert_balanced(bus)


def test_a_dropped_lease_is_given_back() -> None:
    with open_bus(ARCHIVE) as bus:
        bus.push(META, BYTES)
        lease = bus.pull_batch("archive")
        lease.packets  # noqa: B018 - so that there are views to clean up
        del lease
        gc.collect()
        with bus.pull_batch("archive") as lease:
            assert len(lease) == 1


def test_members_of_a_group_share_packets_and_groups_each_see_all() -> None:
    with open_bus(TRAIN, ARCHIVE) as bus:
        first, second = bus.subscribe("train", "a"), bus.subscribe("train", "b")
        archive = bus.subscribe("archive", "c")
        for _ in range(10):
            bus.push(META, BYTES)
        seen = []
        for member in (first, second, first, archive):
            with member.pull_batch(4 if member is not archive else 64, 0) as lease:
                seen.append([packet.seq for packet in lease])
        assert seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], list(range(10))]


def test_a_late_group_sees_packets_from_now_on_and_counts_the_rest_as_missed() -> None:
    with open_bus() as bus:
        for _ in range(3):
            bus.push(META, BYTES)
        with pytest.raises(BusError, match="archive"):
            bus.subscribe("archive", "late")
        late = bus.subscribe("archive", "late", ARCHIVE)
        assert bus.account().group("archive").missed == 3
        bus.push(META, BYTES)
        with late.pull_batch() as lease:
            assert [packet.seq for packet in lease] == [3]
        archive = bus.account().group("archive")
        assert (archive.delivered, archive.missed) == (1, 3)
        assert_balanced(bus)


def test_a_group_sees_only_the_hooks_that_it_selected() -> None:
    with open_bus(TRAIN, GroupSpec("one", hooks=("b",)), names=("a", "b")) as bus:
        ids = [bus.intern(name) for name in ("a", "b", "a", "b", "c")]
        for hook_id in ids:
            bus.push(META._replace(hook_id=hook_id), BYTES)
        with bus.pull_batch("one") as lease:
            assert [bus.name_of(packet.hook_id) for packet in lease] == ["b", "b"]
        assert bus.account().group("one").missed == 3
        bus.pull_batch("train").release()
        assert_balanced(bus)
        with pytest.raises(BusError, match="unheard"):
            bus.subscribe("late", "m", GroupSpec("late", hooks=("unheard",)))


def test_taking_back_the_claims_of_a_live_process_fails_its_release_and_nothing_else() -> None:
    with open_bus(ARCHIVE) as bus:
        bus.push(META, BYTES)
        lease = bus.pull_batch("archive")
        assert bus.reap(os.getpid()) == 1
        assert lease.release() == 0
        assert bus.pull_batch("archive").release() == 1
        assert_balanced(bus)


def test_views_survive_the_close_of_their_bus() -> None:
    with open_bus() as bus:
        bus.push(META, BYTES)
        lease = bus.pull_batch("train")
        array = np.frombuffer(lease.packets[0].payload, np.uint8)
        bus.close()
    assert array.tobytes() == BYTES
    del array
    assert lease.release() == 0


def test_a_late_group_without_members_does_not_hold_the_bus_up_and_may_come_back() -> None:
    with open_bus(capacity_packets=8) as bus:
        late = bus.subscribe("late", "m", GroupSpec("late"))
        assert bus.push(META, BYTES)
        late.close()
        for _ in range(30):
            assert bus.push(META, BYTES)
            bus.pull_batch("train").release()
        again = bus.subscribe("late", "n")
        assert bus.push(META, BYTES)
        with again.pull_batch() as lease:
            assert [packet.seq for packet in lease] == [31]
        assert bus.account().group("late").missed == 31
        assert_balanced(bus)


def test_a_declared_group_without_members_keeps_its_packets() -> None:
    with open_bus(TRAIN, ARCHIVE, capacity_packets=4) as bus:
        bus.subscribe("archive", "m").close()
        while bus.push(META, BYTES):
            bus.pull_batch("train").release()
        assert bus.account().group("archive").ready == 4
