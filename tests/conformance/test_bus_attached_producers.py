"""Ranks: producers in other processes than the bus's owner, one shard each."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import pytest

from asys_bench.contracts.bus import (
    BaseDataBus,
    BusError,
    BusPlugin,
    BusSubscription,
    Delivery,
    DropReason,
    GroupSpec,
)

from .processes import Nursery, Remote
from .support import (
    PATIENCE_S,
    Buses,
    balanced,
    body_of,
    drain,
    eventually,
    meta_of,
    pull_numbers,
    push_numbers,
    read_all,
    settled,
)

TRAIN = GroupSpec("train")
ARCHIVE = GroupSpec("archive", Delivery.AT_LEAST_ONCE)


@pytest.fixture
def ranks_bus(shared_bus: Buses) -> Buses:
    """As `make_bus`, for backends whose producers can live in other processes."""
    if not shared_bus.plugin.capabilities.shares_producers:
        pytest.skip(f"{shared_bus.plugin.name} keeps its producers with their owner")
    return shared_bus


@pytest.fixture
def join() -> Iterator[Callable[..., BusSubscription]]:
    """Joins a group of a bus; leaves it after the test."""
    with contextlib.ExitStack() as stack:

        def join_group(bus: BaseDataBus, group: str, spec: GroupSpec | None = None):
            return stack.enter_context(bus.subscribe(group, "a", spec))

        yield join_group


def rank(nursery: Nursery, bus, shard: int, source: int) -> Remote:
    remote = nursery.child().attach(bus.handle())
    remote.call("produce", shard=shard, source=source)
    return remote


def test_packets_of_every_rank_arrive_whole_and_tagged(
    ranks_bus: Buses, nursery: Nursery, join
) -> None:
    bus = ranks_bus(TRAIN, shards=3, source=4)
    reader = join(bus, "train")
    second, third = rank(nursery, bus, 1, 5), rank(nursery, bus, 2, 6)
    push_numbers(bus.producer(0), 0, 50)
    assert second.call("push", first=100, count=50, nbytes=3000) == 50
    assert third.call("push", first=200, count=50, nbytes=70_000) == 50
    seen: dict[int, list[int]] = {4: [], 5: [], 6: []}
    shards = {}
    for _ in range(150):
        with reader.pull_batch(1, PATIENCE_S) as lease:
            (packet,) = lease
            assert bytes(packet.payload) == body_of(packet.host_step, packet.payload.nbytes)
            assert packet.seq == len(seen[packet.source])
            seen[packet.source].append(packet.host_step)
            shards[packet.source] = packet.shard
            del packet
    assert seen == {
        4: list(range(50)),
        5: list(range(100, 150)),
        6: list(range(200, 250)),
    }
    assert shards == {4: 0, 5: 1, 6: 2}
    settled(bus, "train", delivered=150)


def test_a_shard_has_one_producer_whoever_asks(ranks_bus: Buses, nursery: Nursery) -> None:
    bus = ranks_bus(TRAIN, shards=2)
    bus.producer(0)
    first = rank(nursery, bus, 1, 1)
    other = nursery.child().attach(bus.handle())
    for shard in (0, 1):
        with pytest.raises(RuntimeError, match="already handed out"):
            other.call("produce", shard=shard, source=9)
    for shard in (2, -1):
        with pytest.raises(RuntimeError, match="no shard"):
            other.call("produce", shard=shard, source=9)
    with pytest.raises(BusError, match="already handed out"):
        bus.producer(1)
    first.kill()
    with pytest.raises(RuntimeError, match="already handed out"):
        other.call("produce", shard=1, source=9)


def test_a_rank_killed_while_writing_loses_that_packet_alone_and_wedges_nobody(
    ranks_bus: Buses, nursery: Nursery, join
) -> None:
    bus = ranks_bus(TRAIN, ARCHIVE, shards=2)
    producer = bus.producer(0)
    reader, archive = join(bus, "train"), join(bus, "archive")
    doomed = rank(nursery, bus, 1, 1)
    assert doomed.call("push", first=0, count=20, nbytes=500) == 20
    doomed.call("begin_write", nbytes=100_000)
    doomed.kill()
    push_numbers(producer, 100, 30)
    expected = {*range(20), *range(100, 130)}
    assert set(pull_numbers(reader, 50)) == expected
    assert set(pull_numbers(archive, 50)) == expected
    push_numbers(producer, 200, 10)
    assert pull_numbers(reader, 10) == list(range(200, 210))
    bus.finish()
    assert drain(reader) == []
    assert drain(archive) == list(range(200, 210))
    settled(bus, "archive", delivered=60, ready=0)
    assert bus.account().produced == 60


def test_a_rank_sees_its_own_shard_fill_up_and_empty_again(
    ranks_bus: Buses, nursery: Nursery, join
) -> None:
    bus = ranks_bus(TRAIN, shards=2, packets=16, nbytes=1 << 20)
    reader = join(bus, "train")
    far = rank(nursery, bus, 1, 1)
    assert far.call("fill_ratio") == 0
    accepted = far.call("push", first=0, count=40, nbytes=1000)
    assert accepted == 16
    assert far.call("refusal") == DropReason.FULL
    assert far.call("fill_ratio") == 1.0
    eventually(lambda: bus.account().dropped["full"] == 24, "the refusals are counted")
    assert not far.call("push_waiting", number=50, nbytes=1000, timeout_s=0.05)
    assert far.call("refusal") == DropReason.TIMEOUT
    assert pull_numbers(reader, 16) == list(range(16))
    assert far.call("push_waiting", number=51, nbytes=1000, timeout_s=PATIENCE_S)
    assert pull_numbers(reader, 1) == [51]
    eventually(lambda: far.call("fill_ratio") == 0, "the shard is empty again")
    assert balanced(bus)


def test_one_full_shard_does_not_fill_the_others(ranks_bus: Buses, nursery: Nursery, join) -> None:
    bus = ranks_bus(TRAIN, shards=2, packets=16)
    join(bus, "train")
    far = rank(nursery, bus, 1, 1)
    assert far.call("push", first=0, count=20, nbytes=100) == 16
    push_numbers(bus.producer(0), 0, 10)


def test_a_rank_that_closed_is_done_and_everything_it_pushed_is_there(
    ranks_bus: Buses, nursery: Nursery, join
) -> None:
    bus = ranks_bus(TRAIN, shards=2)
    reader = join(bus, "train")
    far = rank(nursery, bus, 1, 1)
    assert far.call("push", first=0, count=100, nbytes=400) == 100
    far.call("end_production")
    eventually(lambda: bus.account().produced == 100, "they are counted")
    assert far.call("push", first=0, count=5, nbytes=100) == 0
    assert far.call("refusal") == DropReason.CLOSED
    far.call("end_production")
    bus.finish()
    assert drain(reader) == list(range(100))
    settled(bus, "train", delivered=100, ready=0)


def test_after_the_owner_finished_a_rank_is_refused(
    ranks_bus: Buses, nursery: Nursery, join
) -> None:
    bus = ranks_bus(TRAIN, shards=2)
    reader = join(bus, "train")
    far = rank(nursery, bus, 1, 1)
    assert far.call("push", first=0, count=3, nbytes=100) == 3
    eventually(lambda: bus.account().produced == 3, "they are counted")
    bus.finish()
    eventually(lambda: far.call("push", first=9, count=1, nbytes=100) == 0, "a push is refused")
    assert drain(reader) == [0, 1, 2]
    assert balanced(bus)


def test_a_rank_outlives_the_owner_without_harm(ranks_bus: Buses, nursery: Nursery) -> None:
    owner = nursery.child()
    handle = owner.own(ranks_bus.plugin.name, TRAIN, shards=2)
    try:
        far = nursery.child().attach(handle)
        far.call("produce", shard=1, source=1)
        assert far.call("push", first=0, count=5, nbytes=100) == 5
        owner.kill()
        far.call("push", first=5, count=1000, nbytes=5000)
        assert not far.call("push_waiting", number=9, nbytes=3_000_000_0, timeout_s=0.1)
        far.call("end_production")
    finally:
        for fd in handle.fds:
            os.close(fd)


def test_groups_that_select_hooks_and_late_groups_count_ranks_too(
    ranks_bus: Buses, nursery: Nursery, join
) -> None:
    picky = GroupSpec("picky", hooks=("layer.b",))
    bus = ranks_bus(TRAIN, picky, shards=2)
    reader, chooser = join(bus, "train"), join(bus, "picky")
    far = rank(nursery, bus, 1, 1)
    assert far.call("push", first=0, count=30, nbytes=100) == 30
    wanted = bus.intern("layer.b")
    assert bus.producer(0).try_push(meta_of(99, 10, wanted), body_of(99, 10))
    assert pull_numbers(chooser, 1) == [99]
    assert len(pull_numbers(reader, 31)) == 31
    settled(bus, "picky", delivered=1, missed=30)
    late = join(bus, "late", GroupSpec("late"))
    assert far.call("push", first=30, count=10, nbytes=100) == 10
    assert pull_numbers(late, 10) == list(range(30, 40))
    read_all(reader)
    late.close()
    eventually(lambda: balanced(bus), "the account balances")


def test_without_sharing_attach_producer_says_so(make_bus: Buses, plugin: BusPlugin) -> None:
    if plugin.capabilities.shares_producers or not plugin.capabilities.cross_process:
        pytest.skip(f"{plugin.name} shares producers, or has no clients")
    client = plugin.attach(make_bus(TRAIN, shards=2).handle())
    try:
        with pytest.raises(BusError, match="choose a backend that shares producers"):
            client.attach_producer(1, 1)
    finally:
        client.close()
