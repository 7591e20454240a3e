"""Groups and shards: broadcast, sharing, selection, late joining, order and fairness."""

from __future__ import annotations

import threading
from collections import Counter

import pytest

from asys_bench.contracts.bus import (
    BaseDataBus,
    BusError,
    BusProducer,
    BusSubscription,
    Delivery,
    GroupSpec,
)

from .processes import Nursery
from .support import (
    Buses,
    balanced,
    body_of,
    drain,
    eventually,
    meta_of,
    pull_numbers,
    pull_some,
    push_numbers,
    settled,
)


def test_every_group_sees_every_packet(make_bus: Buses) -> None:
    names = ("train", "archive", "probe")
    bus = make_bus(*(GroupSpec(name) for name in names))
    push_numbers(bus.producer(), 0, 50)
    for name in names:
        with bus.subscribe(name, "a") as reader:
            assert pull_numbers(reader, 50) == list(range(50))
        settled(bus, name, delivered=50)


def test_members_of_a_group_share_its_packets(make_bus: Buses) -> None:
    bus = make_bus(GroupSpec("train"))
    push_numbers(bus.producer(), 0, 60)
    with bus.subscribe("train", "a") as one, bus.subscribe("train", "b") as two:
        seen: list[int] = []
        for turn in range(1200):
            reader = (one, two)[turn % 2]
            with reader.pull_batch(7, 0.05) as lease:
                numbers = [packet.host_step for packet in lease]
            assert numbers == sorted(numbers)
            seen += numbers
            if len(seen) == 60:
                break
        assert sorted(seen) == list(range(60)), "lost or given to both"
    settled(bus, "train", delivered=60)


def test_a_packet_asked_for_by_nobody_is_there_for_the_next_member(make_bus: Buses) -> None:
    bus = make_bus()
    with bus.subscribe("train", "a") as idle, bus.subscribe("train", "b") as busy:
        assert len(idle.pull_batch(8, 0.02)) == 0
        push_numbers(bus.producer(), 0, 5)
        assert pull_numbers(busy, 5) == [0, 1, 2, 3, 4]


def test_a_full_group_refuses_for_every_group_alike(make_bus: Buses) -> None:
    bus = make_bus(GroupSpec("slow"), GroupSpec("quick"), packets=8)
    producer = bus.producer()
    with bus.subscribe("quick", "a") as quick, bus.subscribe("slow", "a") as slow:
        count = 0
        while producer.try_push(meta_of(count, 8), body_of(count, 8)):
            count += 1
            pull_numbers(quick, 1)
        assert count >= 8
        settled(bus, "quick", delivered=count, ready=0)
        settled(bus, "slow", ready=count)
        assert pull_numbers(slow, count) == list(range(count))
    assert balanced(bus)


def test_a_group_sees_only_the_hooks_it_selected(make_bus: Buses) -> None:
    picky = GroupSpec("picky", hooks=("layer.b", "later"))
    bus = make_bus(GroupSpec("all"), picky, names=("layer.a", "layer.b"))
    producer = bus.producer()
    first, second, later = (bus.intern(name) for name in ("layer.a", "layer.b", "later"))
    for number, hook_id in enumerate([first, second, later, first, second]):
        push_numbers(producer, number, 1, hook_id=hook_id)
    with bus.subscribe("picky", "a") as reader, bus.subscribe("all", "a") as everything:
        assert pull_numbers(reader, 3) == [1, 2, 4]
        assert pull_numbers(everything, 5) == [0, 1, 2, 3, 4]
        settled(bus, "picky", delivered=3, missed=2)
        bus.finish()
        assert drain(reader) == []


def test_a_group_that_joins_late_sees_packets_from_then_on(make_bus: Buses) -> None:
    if not make_bus.plugin.capabilities.joins_late:
        pytest.skip("groups cannot join late")
    bus = make_bus(GroupSpec("train"), packets=8)
    producer = bus.producer()
    dropped = 0
    with bus.subscribe("train", "a") as train:
        while producer.try_push(meta_of(0, 8), bytes(8)):
            pass
        dropped = bus.account().dropped_total
        early = bus.account().produced - dropped
        while bus.account().group("train").delivered < early:
            train.pull_batch(8, 0.1).release()
        with bus.subscribe("late", "a", GroupSpec("late", Delivery.AT_LEAST_ONCE)) as late:
            push_numbers(producer, 100, 4)
            assert pull_numbers(late, 4) == [100, 101, 102, 103]
            assert pull_numbers(train, 4) == [100, 101, 102, 103]
            settled(bus, "late", delivered=4, missed=early)
            settled(bus, "train", delivered=early + 4, missed=0)
    assert bus.account().dropped_total == dropped


def test_a_late_group_needs_a_spec(make_bus: Buses) -> None:
    bus = make_bus()
    with pytest.raises(BusError):
        bus.subscribe("late", "a")


def _fill(bus: BaseDataBus, producer: BusProducer) -> int:
    """Push until refused; returns how many went in."""
    count = 0
    while producer.try_push(meta_of(count, 8), body_of(count, 8)):
        count += 1
    return count


def _can_push_again(producer: BusProducer, first: int) -> bool:
    return producer.try_push(meta_of(first, 8), body_of(first, 8))


def test_a_late_group_that_everybody_left_holds_nothing_up(make_bus: Buses) -> None:
    bus = make_bus(GroupSpec("train"), packets=8)
    producer = bus.producer()
    bus.subscribe("late", "a", GroupSpec("late")).close()
    with bus.subscribe("train", "a") as reader:
        for first in range(0, 64, 4):
            push_numbers(producer, first, 4)
            assert pull_numbers(reader, 4) == list(range(first, first + 4))
    assert balanced(bus)


def test_a_retired_group_holds_nothing_up_and_its_packets_count_as_missed(make_bus: Buses) -> None:
    bus = make_bus(GroupSpec("train"), GroupSpec("dead", Delivery.AT_LEAST_ONCE), packets=8)
    producer = bus.producer()
    with bus.subscribe("train", "a") as reader:
        count = _fill(bus, producer)
        assert pull_numbers(reader, count) == list(range(count))
        assert not _can_push_again(producer, count), "a declared group waits for its readers"
        bus.retire("dead")
        eventually(lambda: _can_push_again(producer, count), "room after the retirement")
        assert pull_numbers(reader, 1) == [count]
        push_numbers(producer, count + 1, 5)
        assert pull_numbers(reader, 5) == list(range(count + 1, count + 6))
    settled(
        bus,
        "dead",
        delivered=0,
        ready=0,
        missed=bus.account().produced - bus.account().dropped_total,
    )
    with bus.subscribe("dead", "back") as back:
        push_numbers(producer, count + 6, 3)
        assert pull_numbers(back, 3) == list(range(count + 6, count + 9))
    assert balanced(bus)


def test_a_group_is_retired_from_another_process(shared_bus: Buses, nursery: Nursery) -> None:
    bus = shared_bus(GroupSpec("train"), GroupSpec("dead"), packets=8)
    producer = bus.producer()
    watchdog = nursery.child().attach(bus.handle())
    with bus.subscribe("train", "a") as reader:
        count = _fill(bus, producer)
        pull_numbers(reader, count)
        watchdog.call("retire", group="dead")
        eventually(lambda: _can_push_again(producer, count), "room after the retirement")
        assert pull_numbers(reader, 1) == [count]
    assert balanced(bus)


def test_retiring_an_unknown_group_is_a_typed_error(make_bus: Buses) -> None:
    with pytest.raises(BusError, match="nobody"):
        make_bus(GroupSpec("train")).retire("nobody")


def test_order_within_each_shard_is_kept(make_bus: Buses) -> None:
    bus = make_bus(shards=3)
    producers = [bus.producer(shard) for shard in range(3)]
    for number in range(90):
        push_numbers(producers[number % 3 if number % 7 else 0], number, 1)
    seqs: dict[int, list[int]] = {0: [], 1: [], 2: []}
    with bus.subscribe("train", "a") as reader:
        while sum(map(len, seqs.values())) < 90:
            with pull_some(reader, most=11) as lease:
                for packet in lease:
                    seqs[packet.shard].append(packet.seq)
    for shard, seen in seqs.items():
        assert seen == list(range(len(seen))), f"shard {shard}"


def test_a_busy_shard_does_not_starve_the_others(make_bus: Buses) -> None:
    bus = make_bus(shards=4, packets=128)
    busy, *quiet = [bus.producer(shard) for shard in range(4)]
    push_numbers(busy, 0, 100)
    for producer in quiet:
        push_numbers(producer, 0, 10)
    seen: Counter[int] = Counter()
    with bus.subscribe("train", "a") as reader:
        for _ in range(200):
            with reader.pull_batch(10, 0.05) as lease:
                seen.update(packet.shard for packet in lease)
            # Keep the busy shard full: the others must still be read to the end.
            while busy.try_push(meta_of(0, 100), body_of(0, 100)):
                pass
            if all(seen[shard] == 10 for shard in (1, 2, 3)):
                break
        assert all(seen[shard] == 10 for shard in (1, 2, 3)), seen


def test_producers_in_threads_and_readers_in_threads_lose_nothing(make_bus: Buses) -> None:
    shards, each = 3, 400
    bus = make_bus(GroupSpec("a"), GroupSpec("b"), shards=shards, packets=64)
    producers = [bus.producer(shard) for shard in range(shards)]
    seen: dict[str, list[tuple[int, int]]] = {"a": [], "b": []}
    failures: list[BaseException] = []

    def produce(shard: int) -> None:
        for number in range(each):
            if not producers[shard].push(meta_of(number, 200), body_of(number, 200), 30.0):
                raise AssertionError(producers[shard].last_refusal)

    def consume(reader: BusSubscription) -> None:
        while not reader.ended:
            with reader.pull_batch(16, 0.1) as lease:
                pairs = [(packet.shard, packet.host_step) for packet in lease]
                assert all(bytes(p.payload) == body_of(p.host_step, 200) for p in lease)
            seen[reader.group] += pairs

    def guarded(work: object, argument: object) -> None:
        try:
            work(argument)  # type: ignore[operator]
        except BaseException as error:  # noqa: BLE001 - reported below
            failures.append(error)

    readers = [bus.subscribe(group, str(i)) for group in ("a", "b") for i in range(2)]
    writing = [threading.Thread(target=guarded, args=(produce, s)) for s in range(shards)]
    reading = [threading.Thread(target=guarded, args=(consume, r)) for r in readers]
    for thread in writing + reading:
        thread.start()
    for thread in writing:
        thread.join(60)
    bus.finish()
    for thread in reading:
        thread.join(60)
    for reader in readers:
        reader.close()
    assert not failures, failures
    everything = sorted((shard, number) for shard in range(shards) for number in range(each))
    for group in ("a", "b"):
        assert sorted(seen[group]) == everything
        settled(bus, group, delivered=shards * each, ready=0)
