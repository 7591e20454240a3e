"""mp_queue's own promises, beyond the conformance suite."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from asys_bench.backends.mp_queue import wire
from asys_bench.backends.mp_queue.arena import NO_ROOM, Arena, Slot
from asys_bench.backends.mp_queue.bus import PythonQueueBus
from asys_bench.backends.mp_queue.client import QueueClient
from asys_bench.backends.mp_queue.config import MpQueueOptions
from asys_bench.backends.mp_queue.counters import CounterReader, CounterWriter
from asys_bench.contracts.bus import (
    BusError,
    BusHandle,
    BusRequest,
    BusSubscription,
    Delivery,
    GroupSpec,
)
from asys_bench.contracts.packet import PacketMeta
from tests.conformance.support import eventually

TRAIN = GroupSpec("train")
ARCHIVE = GroupSpec("archive", Delivery.AT_LEAST_ONCE)


def _request(**changes: object) -> BusRequest:
    return BusRequest(**{"groups": (TRAIN, ARCHIVE), "capacity_packets": 64, **changes})  # type: ignore[arg-type]


@pytest.fixture
def bus() -> Iterator[PythonQueueBus]:
    with PythonQueueBus(_request()) as bus:
        yield bus


def _push(bus: PythonQueueBus, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        assert bus.push(PacketMeta(0, 0, 5, (8,), host_step=number), number.to_bytes(8, "little"))


def _read(subscription: BusSubscription, count: int) -> list[int]:
    seen: list[int] = []
    deadline = time.monotonic() + 60
    while len(seen) < count:
        assert time.monotonic() < deadline, f"{len(seen)} of {count}"
        with subscription.pull_batch(count - len(seen), 0.2) as lease:
            seen += [packet.host_step for packet in lease]
    return seen


def test_prefetch_delivers_the_same_packets_in_order() -> None:
    with PythonQueueBus(_request(options=MpQueueOptions(prefetch=True))) as bus:
        _push(bus, 40)
        reader = bus.subscribe("train", "a")
        seen = []
        for most in (8, 8, 3, 64, 64):  # a smaller pull after a prefetch of 8 returns the surplus
            with reader.pull_batch(most, 60.0) as lease:
                assert len(lease) <= most
                seen += [packet.host_step for packet in lease]
            if len(seen) == 40:
                break
        assert seen == list(range(40))
        reader.close()
        eventually(lambda: bus.account().group("train").delivered == 40, "40 packets")
        assert bus.account().group("train").lost_in_flight == 0


def test_a_prefetched_batch_that_was_never_opened_is_not_lost_when_its_member_leaves() -> None:
    with PythonQueueBus(_request(options=MpQueueOptions(prefetch=True))) as bus:
        _push(bus, 16)
        leaver = bus.subscribe("train", "leaver")
        with leaver.pull_batch(8, 1.0) as lease:
            assert len(lease) == 8
        eventually(lambda: bus.account().group("train").delivered == 8, "8 packets")
        leaver.close()
        with bus.subscribe("train", "stayer") as stayer:
            assert _read(stayer, 8) == list(range(8, 16))


def test_a_late_group_that_left_holds_nothing_up(bus: PythonQueueBus) -> None:
    late = bus.subscribe("late", "a", GroupSpec("late", Delivery.AT_LEAST_ONCE))
    _push(bus, 3)
    late.close()
    eventually(lambda: bus.account().group("late").missed == 3, "3 missed packets")
    _push(bus, 5, first=3)
    account = bus.account().group("late")
    assert (account.ready, account.missed) == (0, 8)
    with bus.subscribe("late", "b", GroupSpec("late")) as again:
        _push(bus, 2, first=8)
        assert _read(again, 2) == [8, 9]
    assert not any(bus.account().imbalance(group) for group in bus.account().groups)


def test_a_late_group_cannot_contradict_a_declared_one(bus: PythonQueueBus) -> None:
    with pytest.raises(BusError, match="exists as"):
        bus.subscribe("train", "a", GroupSpec("train", Delivery.AT_LEAST_ONCE))
    bus.subscribe("train", "a", TRAIN).close()


def test_a_wrong_token_is_refused(bus: PythonQueueBus, caplog: pytest.LogCaptureFixture) -> None:
    handle = bus.handle()
    forged = BusHandle(handle.backend, {**handle.params, "token": "0" * 64}, handle.fds)
    client = QueueClient.attach(forged)
    with caplog.at_level(logging.CRITICAL), pytest.raises(BusError, match="token"):
        client.subscribe("train", "a")
    client.close()


@pytest.mark.parametrize(
    "noise",
    [
        b"\xff" * 64,
        wire.HEAD.pack(wire.Frame.PULL, 1, 1),
        wire.HEAD.pack(wire.Frame.HELLO, 1 << 31, 0),
        wire.HEAD.pack(wire.Frame.HELLO, 4, 0) + b"null",
        wire.HEAD.pack(wire.Frame.HELLO, 9, 0) + b'{"token":',
        b"",
    ],
)
def test_noise_on_the_socket_harms_nobody_else(
    bus: PythonQueueBus, noise: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    address = str(bus.handle().params["address"])
    with caplog.at_level(logging.CRITICAL), bus.subscribe("train", "a") as reader:
        channel = wire.connect(address, 60.0)
        with channel:
            channel.sendall(noise)
        _push(bus, 5)
        assert _read(reader, 5) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "frames",
    [
        wire.HEAD.pack(wire.Frame.ACK, 0, 77),
        wire.HEAD.pack(wire.Frame.PULL, 0, 0),
        wire.HEAD.pack(wire.Frame.PULL, 1, 1) * 2,
        wire.HEAD.pack(99, 0, 0),
    ],
)
def test_a_member_that_breaks_the_protocol_is_dropped(
    bus: PythonQueueBus, frames: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    params = bus.handle().params
    with caplog.at_level(logging.CRITICAL), wire.connect(params["address"], 60.0) as channel:
        hello = wire.Hello("archive", "bad", None)
        channel.sendall(wire.encode_hello(params["token"], hello))
        kind, count, _ = wire.HEAD.unpack(channel.recv(wire.HEAD.size))
        assert kind == wire.Frame.WELCOME
        assert json.loads(channel.recv(count)) == {"error": None}
        channel.sendall(frames)
        assert channel.recv(16) == b"", "it was not hung up on"


def test_a_signal_handler_that_raises_leaves_the_subscription_usable(bus: PythonQueueBus) -> None:
    class Interrupted(Exception):  # noqa: N818
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with bus.subscribe("archive", "a") as reader:
            for turn in range(20):
                with pytest.raises(Interrupted):  # noqa: PT012 - it may come before the pull
                    signal.setitimer(signal.ITIMER_REAL, 0.0005 + 0.0005 * turn)
                    reader.pull_batch(8, 60.0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            _push(bus, 10)
            assert sorted(_read(reader, 10)) == list(range(10))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    eventually(lambda: bus.account().group("archive").delivered == 10, "10 packets")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 and later
def test_a_living_forked_child_does_not_hide_its_parents_death(bus: PythonQueueBus) -> None:
    _push(bus, 4)
    handle = bus.handle()
    told, tells = os.pipe()
    pid = os.fork()
    if pid == 0:  # a consumer that forks a helper, then dies
        client = QueueClient.attach(handle)
        lease = client.subscribe("archive", "a").pull_batch(4, 60.0)
        helper = os.fork()
        if helper == 0:
            time.sleep(600)
            os._exit(0)
        os.write(tells, str(helper).encode())
        os._exit(0 if len(lease) == 4 else 1)
    os.close(tells)
    helper = int(os.read(told, 32))
    os.close(told)
    try:
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        with bus.subscribe("archive", "heir") as heir:  # the helper has a copy of the socket
            assert _read(heir, 4) == [0, 1, 2, 3]
    finally:
        os.kill(helper, signal.SIGKILL)


def test_out_of_descriptors_the_bus_keeps_serving(
    bus: PythonQueueBus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    address = str(bus.handle().params["address"])
    with bus.subscribe("train", "a") as reader:
        genuine, failures = socket.socket.accept, [OSError(24, "Too many open files")]

        def accept(self: socket.socket) -> object:
            if failures:
                raise failures.pop()
            return genuine(self)

        monkeypatch.setattr(socket.socket, "accept", accept)
        with caplog.at_level(logging.CRITICAL), wire.connect(address, 60.0) as channel:
            assert channel.recv(1) == b"", "turned away"
        _push(bus, 3)
        assert _read(reader, 3) == [0, 1, 2]
        with bus.subscribe("archive", "b") as another:
            assert _read(another, 3) == [0, 1, 2]


def test_a_snapshot_torn_by_the_owners_death_is_the_one_before() -> None:
    writer = CounterWriter()
    writer.add_group("train")
    writer.cells[2] = 5
    writer.cells[-2] = 5
    writer.publish()
    reader = CounterReader(writer.reader_fd)
    try:
        before = reader.account()
        assert before.produced == 5
        # Death in the middle of `publish`: the other copy is half written, `version` is not.
        target = writer._targets[(writer._version + 1) & 1]
        target[0], target[2] = writer._version + 1, 999
        assert reader.account() == before
    finally:
        reader.close()
        writer.close()


def test_the_counter_page_cannot_be_written_through_the_handle(bus: PythonQueueBus) -> None:
    (fd,) = bus.handle().fds
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(fd, b"\0", 0)


def test_the_arena_reuses_memory_oldest_first_and_never_overlaps() -> None:
    arena = Arena(capacity_packets=8, capacity_bytes=4096)
    held: list[Slot] = []
    for step in range(2000):
        size = 64 * (1 + (step * 7) % 13)
        offset = arena.place(size)
        if offset == NO_ROOM:
            assert held
            held.pop(0).refs = 0
            arena.free_oldest()
            continue
        assert offset + size <= arena.size
        for other in held:
            assert offset + size <= other.offset or other.offset + other.size <= offset
        slot = Slot(step, 0, offset, size, size - 128, 1)
        arena.add(slot)
        held.append(slot)
    arena.close()


def test_the_bus_keeps_its_threads_to_one(bus: PythonQueueBus) -> None:
    def threads() -> list[str]:
        return [one.name for one in threading.enumerate() if "mp-queue" in one.name]

    eventually(lambda: len(threads()) == 1, "the end of earlier buses")
    with bus.subscribe("train", "a"), bus.subscribe("archive", "b"):
        assert threads() == ["asys-mp-queue-io"]
