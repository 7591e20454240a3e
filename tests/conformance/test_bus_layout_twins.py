"""cpp_spmc and numba_ring share one segment: each reads, reaps and accounts for what the other wrote."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from asys_bench.contracts.bus import (
    BaseDataBus,
    BusClient,
    BusHandle,
    BusPlugin,
    BusRequest,
    BusSubscription,
    Delivery,
    GroupSpec,
)
from asys_bench.contracts.packet import NO_PARAMS, PacketMeta
from asys_bench.registry import registry

from .processes import Nursery
from .support import (
    PATIENCE_S,
    balanced,
    body_of,
    drain,
    eventually,
    is_whole,
    meta_of,
    pull_numbers,
    push_numbers,
    settled,
)

TRAIN = GroupSpec("train")
ARCHIVE = GroupSpec("archive", Delivery.AT_LEAST_ONCE)
HEADER_FIELDS = PacketMeta(
    1, 2, 3, (2, 3, 2**32 - 1), 5, 6, 2**64 - 1, 9, b"x" * 16, 0.25, 11, 7, 8
)


@pytest.fixture(
    params=[("cpp_spmc", "numba_ring"), ("numba_ring", "cpp_spmc")],
    ids=["cpp writes, numba reads", "numba writes, cpp reads"],
)
def twins(request: pytest.FixtureRequest) -> tuple[BusPlugin, BusPlugin]:
    """The backend that makes the segment and writes, and the one that attaches and reads."""
    plugins = []
    for name in request.param:
        if name not in registry("backend").names():
            pytest.skip(f"{name} is not registered")
        plugin = registry("backend").get(name, BusPlugin)
        if plugin.unavailable() is not None:
            pytest.skip(f"{name}: {plugin.unavailable()}")
        plugins.append(plugin)
    return plugins[0], plugins[1]


@contextmanager
def pair(
    twins: tuple[BusPlugin, BusPlugin],
    *groups: GroupSpec,
    options: dict[str, Any] | None = None,
    **request: Any,
) -> Iterator[tuple[BaseDataBus, BusClient]]:
    """A bus of one backend and a client of the other on the same segment."""
    writer, reader = twins
    request.setdefault("capacity_packets", 64)
    request.setdefault("capacity_bytes", 1 << 20)
    built = writer.options(**(options or {}))
    with writer.build(BusRequest(groups or (TRAIN,), options=built, **request)) as bus:
        client = reader.attach(bus.handle())
        try:
            yield bus, client
        finally:
            client.close()


def handle_for(bus: BaseDataBus, reader: BusPlugin) -> BusHandle:
    """The bus's handle as the other backend would have made it."""
    return replace(bus.handle(), backend=reader.name)


def test_each_names_the_other_as_a_reader_of_its_layout(twins: tuple[BusPlugin, BusPlugin]) -> None:
    writer, reader = twins
    assert reader.name in writer.capabilities.shares_layout_with


@pytest.mark.parametrize("nbytes", [0, 1, 64, 65, 4096, 65_537, 700_001])
def test_payloads_of_any_size_are_read_whole_and_verified(
    twins: tuple[BusPlugin, BusPlugin], nbytes: int
) -> None:
    with pair(twins, checksum=True) as (bus, client), client.subscribe("train", "far") as far:
        producer = bus.producer()
        for number in range(4):
            assert producer.try_push(meta_of(number, nbytes), body_of(number, nbytes))
            with far.pull_batch() as lease:
                assert [packet.host_step for packet in lease] == [number]
                assert is_whole(lease.packets[0])
                assert lease.packets[0].verify()


def test_both_see_the_same_packet(twins: tuple[BusPlugin, BusPlugin]) -> None:
    with (
        pair(twins, TRAIN, ARCHIVE, source=3, shards=2, checksum=True) as (bus, client),
        bus.subscribe("train", "near") as near,
        client.subscribe("archive", "far") as far,
    ):
        assert bus.producer(1).try_push(HEADER_FIELDS, bytes(24))
        assert bus.producer(0).try_push(HEADER_FIELDS._replace(params=NO_PARAMS), b"")
        with near.pull_batch(min_packets=2) as ours, far.pull_batch(min_packets=2) as theirs:
            assert list(ours) == list(theirs)
            assert sorted(packet.shard for packet in theirs) == [0, 1]


def test_rows_and_reservations_arrive(twins: tuple[BusPlugin, BusPlugin]) -> None:
    rows = np.arange(20 * 96, dtype=np.uint16).reshape(20, 96)
    with pair(twins) as (bus, client), client.subscribe("train", "far") as far:
        producer = bus.producer()
        assert producer.try_push_many(meta_of(0, 192), rows) == 20
        with far.pull_batch() as lease:
            assert [bytes(packet.payload) for packet in lease] == [row.tobytes() for row in rows]
        reservation = producer.reserve(500)
        assert reservation is not None
        reservation.view[:300] = body_of(1, 300)
        assert reservation.commit(meta_of(1, 300), 300)
        assert pull_numbers(far, 1) == [1]


def test_members_of_both_backends_share_a_group_and_the_account_is_one(
    twins: tuple[BusPlugin, BusPlugin],
) -> None:
    with (
        pair(twins, TRAIN, ARCHIVE) as (bus, client),
        bus.subscribe("train", "near") as near,
        client.subscribe("train", "far") as far,
    ):
        push_numbers(bus.producer(), 0, 40)
        seen: list[int] = []
        for turn in range(40):
            with (near, far)[turn % 2].pull_batch(3, 0.0) as lease:
                seen += [packet.host_step for packet in lease]
        assert seen == list(range(40))
        client.subscribe("archive", "failing").pull_batch(5).give_back()
        assert bus.account() == client.account()
        assert bus.account().group("archive").redelivered == 5
        assert balanced(client)


@pytest.mark.parametrize("initial_seq", [2**32 - 5, 2**40 - 5, 2**63 - 5, 2**64 - 5])
def test_sequence_numbers_wrap_alike(twins: tuple[BusPlugin, BusPlugin], initial_seq: int) -> None:
    with (
        pair(twins, options={"initial_seq": initial_seq}, capacity_packets=4) as (bus, client),
        client.subscribe("train", "far") as far,
    ):
        producer = bus.producer()
        for number in range(30):
            push_numbers(producer, number, 1)
            with far.pull_batch(timeout_s=PATIENCE_S) as lease:
                assert [packet.seq for packet in lease] == [(initial_seq + number) % 2**64]
                assert is_whole(lease.packets[0])
        assert client.account() == bus.account()
        settled(client, "train", delivered=30, ready=0)


def test_a_group_made_by_the_other_sees_what_it_selected_and_is_let_go_when_it_left(
    twins: tuple[BusPlugin, BusPlugin],
) -> None:
    with pair(twins, names=("a", "b"), capacity_packets=8) as (bus, client):
        producer = bus.producer()
        push_numbers(producer, 0, 3, hook_id=bus.intern("b"))
        late = client.subscribe("late", "far", GroupSpec("late", hooks=("b",)))
        push_numbers(producer, 3, 1, hook_id=bus.intern("a"))
        push_numbers(producer, 4, 1, hook_id=bus.intern("b"))
        assert pull_numbers(late, 1) == [4]
        assert client.account().group("late").missed == 4
        assert client.name_of(bus.intern("b")) == "b"
        push_numbers(producer, 5, 1, hook_id=bus.intern("b"))
        late.close()
        with bus.subscribe("train", "near") as near:
            assert pull_numbers(near, 6) == list(range(6))
            for number in range(6, 30):
                assert producer.push(meta_of(number, 9), body_of(number, 9), timeout_s=PATIENCE_S)
                assert pull_numbers(near, 1) == [number]
        assert bus.account() == client.account()
        assert balanced(bus)


def test_a_killed_reader_of_the_other_backend_is_reaped(
    twins: tuple[BusPlugin, BusPlugin], nursery: Nursery
) -> None:
    with pair(twins, TRAIN, ARCHIVE) as (bus, client):
        push_numbers(bus.producer(), 0, 10)
        victims = [
            nursery.child().attach(handle_for(bus, twins[1]), group)
            for group in ("train", "archive")
        ]
        for victim in victims:
            assert len(victim.call("pull", most=4, timeout_s=PATIENCE_S)) == 4
            assert bus.reap(victim.kill()) == 4
        settled(bus, "train", lost_in_flight=4, ready=6)
        with client.subscribe("archive", "heir") as heir:
            assert sorted(pull_numbers(heir, 10)) == list(range(10))
        settled(bus, "archive", delivered=10, redelivered=4)
        assert bus.account() == client.account()


def test_a_sleeping_reader_of_the_other_backend_wakes_and_ends(
    twins: tuple[BusPlugin, BusPlugin], nursery: Nursery
) -> None:
    with pair(twins) as (bus, _):
        far = nursery.child().attach(handle_for(bus, twins[1]), "train")
        producer = bus.producer()
        for number in range(3):
            far.start("pull", most=4, timeout_s=PATIENCE_S)
            time.sleep(0.05)
            push_numbers(producer, number, 1)
            assert far.result() == [number]
            far.call("release")
        far.start("drain", timeout_s=PATIENCE_S)
        bus.finish()
        assert far.result() == []


def test_a_writer_killed_at_any_moment_leaves_an_account_that_balances(
    twins: tuple[BusPlugin, BusPlugin], nursery: Nursery
) -> None:
    writer, reader = twins
    owner = nursery.child()
    handle = owner.own(writer.name, TRAIN, ARCHIVE)
    client = reader.attach(handle)
    try:
        member = client.subscribe("train", "far")
        owner.start("push", first=0, count=100_000, nbytes=64)
        eventually(lambda: client.account().produced > 50, "some pushes")
        owner.kill()
        numbers = drain(member)
        assert numbers == list(range(len(numbers)))
        account = client.account()
        assert account.group("train").delivered == len(numbers)
        assert account.produced - account.dropped_total == len(numbers)
        assert balanced(client)
    finally:
        client.close()
        for fd in handle.fds:
            os.close(fd)


def test_a_named_segment_is_opened_by_the_other(twins: tuple[BusPlugin, BusPlugin]) -> None:
    name = f"twins-{os.getpid()}"
    with pair(twins, options={"name": name}) as (bus, client):
        assert bus.handle().fds == ()
        push_numbers(bus.producer(), 0, 3)
        with client.subscribe("train", "far") as far:
            assert pull_numbers(far, 3) == [0, 1, 2]
    assert not os.path.exists(f"/dev/shm/asys-{name}")


def test_competing_readers_of_both_kinds_lose_and_repeat_nothing_under_load(
    twins: tuple[BusPlugin, BusPlugin],
) -> None:
    count = 3000
    rng = random.Random(5)
    sizes = [rng.choice((0, 8, 64, 1000, 20_000)) for _ in range(count)]
    seen: list[int] = []
    torn: list[int] = []

    def read(member: BusSubscription) -> None:
        while not member.ended:
            with member.pull_batch(16, 0.1) as lease:
                torn.extend(p.seq for p in lease if p.payload.nbytes != sizes[p.host_step])
                torn.extend(p.seq for p in lease if not is_whole(p))
                seen.extend(p.host_step for p in lease)

    with (
        pair(twins, capacity_packets=32, capacity_bytes=128 << 10) as (bus, client),
        bus.subscribe("train", "near") as near,
        client.subscribe("train", "far") as far,
    ):
        readers = [threading.Thread(target=read, args=(member,)) for member in (near, far)]
        for reader in readers:
            reader.start()
        producer = bus.producer()
        for number, nbytes in enumerate(sizes):
            body = body_of(number, nbytes)
            assert producer.push(meta_of(number, nbytes), body, timeout_s=PATIENCE_S)
        bus.finish()
        for reader in readers:
            reader.join(60)
        assert torn == []
        assert sorted(seen) == list(range(count))
        settled(client, "train", delivered=count, ready=0)
