"""The owner's death and the end of a bus: consumers drain, accounts stay, nothing is left behind."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from pathlib import Path

import pytest

from asys_bench.contracts.bus import BusError, BusHandle, BusPlugin, Delivery, GroupSpec

from .processes import Nursery
from .support import (
    PATIENCE_S,
    Buses,
    balanced,
    body_of,
    drain,
    eventually,
    meta_of,
    pull_some,
    push_numbers,
)

TRAIN = GroupSpec("train")
ARCHIVE = GroupSpec("archive", Delivery.AT_LEAST_ONCE)
SHM = Path("/dev/shm")


@pytest.fixture
def shared_plugin(plugin: BusPlugin) -> BusPlugin:
    if not plugin.capabilities.cross_process:
        pytest.skip(f"{plugin.name} lives in one process")
    return plugin


def test_consumers_drain_and_end_when_the_owner_is_killed(
    shared_plugin: BusPlugin, nursery: Nursery
) -> None:
    owner = nursery.child()
    handle = owner.own(shared_plugin.name, TRAIN, ARCHIVE)
    client = shared_plugin.attach(handle)
    try:
        reader = client.subscribe("archive", "a")
        assert owner.call("push", first=0, count=30, nbytes=5000) == 30
        lease = pull_some(reader, most=10)
        held = [packet.host_step for packet in lease]
        owner.kill()
        assert lease.release() == len(held), "what the dead owner sent is still good"
        rest = drain(reader)
        assert held + rest == list(range(len(held) + len(rest))), "a gap or a torn packet"
        account = client.account()
        assert account.produced == 30
        assert balanced(client)
    finally:
        client.close()
        for fd in handle.fds:
            os.close(fd)


def test_a_consumer_that_waits_notices_the_owners_death(
    shared_plugin: BusPlugin, nursery: Nursery
) -> None:
    owner, far = nursery.child(), nursery.child()
    handle = owner.own(shared_plugin.name, TRAIN)
    try:
        far.attach(handle, "train")
        far.start("drain", timeout_s=PATIENCE_S)
        owner.kill()
        assert far.result() == []
    finally:
        for fd in handle.fds:
            os.close(fd)


def test_an_owner_killed_in_the_middle_of_a_write_leaves_no_half_packet(
    shared_plugin: BusPlugin, nursery: Nursery
) -> None:
    owner = nursery.child()
    handle = owner.own(shared_plugin.name, TRAIN)
    client = shared_plugin.attach(handle)
    try:
        reader = client.subscribe("train", "a")
        owner.call("push", first=0, count=3, nbytes=1000)
        with pull_some(reader) as lease:
            seen = [packet.host_step for packet in lease]
        owner.call("begin_write", nbytes=100_000)
        owner.kill()
        seen += drain(reader)
        assert seen == list(range(len(seen)))
        assert len(seen) <= 3
        assert client.account().produced == 3
        assert balanced(client)
    finally:
        client.close()
        for fd in handle.fds:
            os.close(fd)


@pytest.mark.parametrize("pushes", [0, 1, 7, 200])
def test_the_account_of_a_killed_owner_balances(
    shared_plugin: BusPlugin, nursery: Nursery, pushes: int
) -> None:
    owner = nursery.child()
    handle = owner.own(shared_plugin.name, TRAIN, ARCHIVE)
    client = shared_plugin.attach(handle)
    try:
        owner.start("push", first=0, count=10_000, nbytes=64)  # killed somewhere in there
        eventually(lambda: client.account().produced >= pushes, "some pushes")
        owner.kill()
        account = client.account()
        assert account.produced >= pushes
        assert balanced(client), account
        assert client.account() == account
    finally:
        client.close()
        for fd in handle.fds:
            os.close(fd)


def test_the_account_is_read_by_a_process_that_never_subscribed(
    shared_bus: Buses, nursery: Nursery
) -> None:
    bus = shared_bus(TRAIN, ARCHIVE)
    push_numbers(bus.producer(), 0, 12)
    far = nursery.child().attach(bus.handle())
    with bus.subscribe("train", "a") as reader:
        with pull_some(reader) as lease:
            count = len(lease)
        eventually(lambda: bus.account().group("train").delivered == count, "delivery")
    groups = {"train": [count, 0, 0, 12 - count, 0], "archive": [0, 0, 0, 12, 0]}
    eventually(lambda: far.call("account")["groups"] == groups, "its account")
    seen = far.call("account")
    assert seen["produced"] == 12
    assert seen["unbalanced"] == []


def test_an_account_read_while_packets_fly_always_balances(
    shared_bus: Buses, nursery: Nursery
) -> None:
    bus = shared_bus(TRAIN, packets=64)
    far = nursery.child().attach(bus.handle(), "train")
    far.start("drain", timeout_s=PATIENCE_S)
    client = shared_bus.plugin.attach(bus.handle())
    producer = bus.producer()
    try:
        last = 0
        for number in range(600):
            assert producer.push(meta_of(number, 64), body_of(number, 64), timeout_s=PATIENCE_S)
            account = client.account()
            assert account.produced >= last
            last = account.produced
    finally:
        client.close()
    bus.finish()
    assert far.result() == list(range(600))
    eventually(lambda: bus.account().group("train").delivered == 600, "delivery")
    assert balanced(bus)


def test_a_closed_bus_is_an_end_for_its_consumers(shared_bus: Buses, nursery: Nursery) -> None:
    bus = shared_bus(TRAIN)
    far = nursery.child().attach(bus.handle(), "train")
    far.start("drain", timeout_s=PATIENCE_S)
    bus.close()
    assert far.result() == []


def test_attaching_to_a_dead_bus_is_an_error_or_ends_at_once(
    shared_plugin: BusPlugin, nursery: Nursery
) -> None:
    owner = nursery.child()
    handle = owner.own(shared_plugin.name, TRAIN)
    owner.kill()
    client = None
    try:
        with contextlib.suppress(BusError):
            client = shared_plugin.attach(handle)
            with client.subscribe("train", "a") as reader:
                assert drain(reader) == []
    finally:
        if client is not None:
            client.close()
        for fd in handle.fds:
            os.close(fd)


def test_a_handle_with_the_wrong_number_of_descriptors_is_refused(shared_bus: Buses) -> None:
    handle = shared_bus(TRAIN).handle()
    with pytest.raises(BusError):
        BusHandle.from_dict(handle.to_dict(), (*handle.fds, 0))


def test_nothing_is_left_after_close(plugin: BusPlugin) -> None:
    _one_life(plugin)  # imports and caches settle
    gc.collect()
    before = _belongings()
    for _ in range(3):
        _one_life(plugin)
    gc.collect()
    eventually(lambda: _belongings() == before, f"{before} again, not {_belongings()}")


def test_nothing_is_left_in_shared_memory_when_everyone_is_killed(
    shared_plugin: BusPlugin, nursery: Nursery
) -> None:
    before = set(os.listdir(SHM)) if SHM.exists() else set()
    owner, far = nursery.child(), nursery.child()
    handle = owner.own(shared_plugin.name, TRAIN)
    far.attach(handle, "train")
    for fd in handle.fds:
        os.close(fd)
    owner.call("push", first=0, count=5, nbytes=100)
    owner.kill()
    far.kill()
    after = set(os.listdir(SHM)) if SHM.exists() else set()
    assert not {name for name in after - before if "asys" in name}


def _one_life(plugin: BusPlugin) -> None:
    buses = Buses(plugin)
    bus = buses(TRAIN, ARCHIVE, shards=2)
    producer = bus.producer()
    push_numbers(producer, 0, 10)
    with bus.subscribe("train", "a") as reader, pull_some(reader) as lease:
        assert len(lease)
    if plugin.capabilities.cross_process:
        client = plugin.attach(bus.handle())
        with client.subscribe("archive", "a") as reader, pull_some(reader) as lease:
            assert len(lease)
        client.close()
        client.close()
    buses.close()


def _belongings() -> tuple[int, int, int, frozenset[str]]:
    """(descriptors, threads, mappings of ours, names in /dev/shm)."""
    descriptors = len(os.listdir("/proc/self/fd"))
    maps = Path("/proc/self/maps").read_text()
    shm = frozenset(os.listdir(SHM)) if SHM.exists() else frozenset()
    ours = sum("asys" in line or "/dev/zero" in line for line in maps.splitlines())
    return descriptors, threading.active_count(), ours, frozenset(n for n in shm if "asys" in n)
