"""CppShardedSPMCBus through the public contract, in one process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import crc32c
import numpy as np
import pytest
import torch

from asys_bench.backends.cpp_spmc.plugin import plugin
from asys_bench.contracts.bus import (
    BaseDataBus,
    BusError,
    BusRequest,
    Delivery,
    DropReason,
    GroupSpec,
)
from asys_bench.contracts.packet import (
    DTYPE_CODE,
    DTYPES,
    HEADER_BYTES,
    ActivationPacket,
    Kind,
    PacketError,
    PacketMeta,
    pack_header_into,
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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_arrives_with_equal_bytes(dtype: torch.dtype) -> None:
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (96,), dtype=torch.uint8)
    tensor = raw.view(dtype).reshape(2, -1)
    meta = PacketMeta(0, 0, DTYPE_CODE[dtype], tuple(tensor.shape))
    with open_bus() as bus:
        assert bus.push(meta, tensor)
        with bus.pull_batch("train") as lease:
            (packet,) = lease
            got = packet.raw_tensor()
            assert got.dtype is dtype
            assert got.shape == tensor.shape
            assert bytes(packet.payload) == raw.numpy().tobytes()
            del got


def test_a_packet_carries_every_field_of_its_meta_and_the_header_is_the_contracts() -> None:
    meta = PacketMeta(
        7, 2, 3, (2, 3, 2**32 - 1), 5, 6, 2**64 - 1, 9, b"abc", 0.25, 2**32 + 11, 65535, -1
    )
    with open_bus(source=3, checksum=True, shards=2) as bus:
        producer = bus.producer(1)
        assert producer.try_push(meta, BYTES)
        with bus.pull_batch("train") as lease:
            packet = lease.packets[0]
            header = bytearray(HEADER_BYTES)
            crc = crc32c.crc32c(BYTES)
            pack_header_into(header, 0, meta, seq=0, shard=1, source=3, payload_bytes=64, crc=crc)
            assert packet == ActivationPacket.from_parts(bytes(header), memoryview(BYTES))
            assert packet.verify()
            assert packet.kind is Kind.GRADIENT


@pytest.mark.parametrize(
    "payload",
    [BYTES, bytearray(BYTES), memoryview(BYTES), np.frombuffer(BYTES, np.int16),
     torch.arange(64, dtype=torch.uint8)],
    ids=["bytes", "bytearray", "memoryview", "ndarray", "tensor"],
)  # fmt: skip
def test_any_contiguous_payload_is_accepted(payload: Any) -> None:
    with open_bus() as bus:
        assert bus.push(META, payload)
        with bus.pull_batch("train") as lease:
            assert bytes(lease.packets[0].payload) == BYTES


@pytest.mark.parametrize(
    "payload",
    [torch.zeros(4, 4).t(), np.zeros((4, 4)).T[:2], torch.empty(2, device="meta"), "text"],
    ids=["tensor", "ndarray", "meta", "str"],
)
def test_a_payload_that_is_no_contiguous_memory_raises_packet_error(payload: Any) -> None:
    with open_bus() as bus:
        with pytest.raises(PacketError):
            bus.push(META, payload)
        assert bus.account().produced == 0


@pytest.mark.parametrize(
    "change",
    [{"shape": (1,) * 9}, {"shape": (2**32,)}, {"shape": (-1,)}, {"hook_id": 65536}, {"host_step": -1},
     {"kind": 256},     {"sampling_rate": 1e300}, {"token_position": 2**31}, {"params": "text"}],
    ids=str,
)  # fmt: skip
def test_a_meta_that_no_header_can_hold_raises_packet_error(change: dict[str, Any]) -> None:
    with open_bus() as bus, pytest.raises(PacketError):
        bus.push(META._replace(**change), BYTES)


@pytest.mark.parametrize("nbytes", [0, 1, 63, 64, 65, 4096, 65_537, 1 << 20])
def test_payloads_of_any_size_arrive_aligned_and_equal(nbytes: int) -> None:
    payload = np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8)
    with open_bus(checksum=True) as bus:
        for _ in range(5):
            assert bus.push(META, payload)
            with bus.pull_batch("train") as lease:
                packet = lease.packets[0]
                assert packet.verify()
                assert bytes(packet.payload) == payload.tobytes()
                if nbytes:
                    assert np.frombuffer(packet.payload, np.uint8).ctypes.data % 64 == 0


def test_a_full_ring_refuses_counts_and_recovers() -> None:
    with open_bus(capacity_packets=8) as bus:
        producer = bus.producer(0)
        assert [producer.try_push(META, BYTES) for _ in range(10)] == [True] * 8 + [False] * 2
        assert producer.last_refusal is DropReason.FULL
        assert bus.fill_ratio() == 1.0
        assert not producer.push(META, BYTES, 0.01)
        assert producer.last_refusal is DropReason.TIMEOUT
        account = bus.account()
        assert (account.produced, account.dropped["full"], account.dropped["timeout"]) == (11, 2, 1)
        assert account.group("train").ready == 8
        bus.pull_batch("train", 3).release()
        assert [producer.try_push(META, BYTES) for _ in range(4)] == [True] * 3 + [False]
        assert_balanced(bus)


def test_a_full_arena_refuses_and_a_payload_beyond_it_is_too_large() -> None:
    with open_bus(capacity_bytes=1 << 16) as bus:
        producer = bus.producer(0)
        assert not producer.try_push(META, bytes((1 << 16) + 1))
        assert producer.last_refusal is DropReason.TOO_LARGE
        assert producer.try_push(META, bytes(1 << 16))
        assert not producer.try_push(META, bytes(1 << 16))
        assert producer.last_refusal is DropReason.FULL
        bus.pull_batch("train").release()
        assert producer.try_push(META, bytes(1 << 16))
        assert_balanced(bus)


def test_a_blocking_push_goes_through_when_room_appears() -> None:
    with open_bus(capacity_packets=2) as bus:
        producer = bus.producer(0)
        assert producer.try_push_many(META, np.zeros((2, 64), np.uint8)) == 2
        timer = threading.Timer(0.05, lambda: bus.pull_batch("train", 1).release())
        timer.start()
        assert producer.push(META, BYTES, 60.0)
        timer.join()
        account = bus.account()
        assert (account.produced, account.dropped_total) == (3, 0)


def test_random_sizes_through_many_wraps_of_the_arena_arrive_intact() -> None:
    rng = np.random.default_rng(1)
    sent: list[bytes] = []
    got: list[bytes] = []
    with open_bus(capacity_bytes=1 << 15, options={"window_bytes": 8192}) as bus:
        producer = bus.producer(0)
        for _ in range(3000):
            payload = rng.bytes(int(rng.integers(0, 3000)))
            if producer.try_push(META, payload):
                sent.append(payload)
            if rng.random() < 0.4:
                with bus.pull_batch("train", int(rng.integers(1, 8)), 0) as lease:
                    got += [bytes(packet.payload) for packet in lease]
        while len(got) < len(sent):
            with bus.pull_batch("train") as lease:
                got += [bytes(packet.payload) for packet in lease]
        assert got == sent
        assert_balanced(bus)


@pytest.mark.parametrize("start", [2**32 - 4, 2**40 - 4, 2**63 - 4, 2**64 - 1000, 2**64 - 4])
def test_sequence_numbers_wrap_without_a_trace(start: int) -> None:
    with open_bus(TRAIN, ARCHIVE, capacity_packets=8, options={"initial_seq": start}) as bus:
        expected = [(start + i) % 2**64 for i in range(2000)]
        seen: list[int] = []
        producer = bus.producer(0)
        while len(seen) < 2000:
            for _ in range(min(6, 2000 - len(seen))):
                assert producer.try_push(META, BYTES)
            with bus.pull_batch("train") as lease:
                seen += [packet.seq for packet in lease]
            lease = bus.pull_batch("archive")
            lease.give_back()
            bus.pull_batch("archive").release()
        assert seen == expected
        account = bus.account()
        assert (account.produced, account.group("archive").redelivered) == (2000, 2000)
        assert_balanced(bus)


def test_shards_are_read_in_turn_and_each_has_one_producer() -> None:
    with open_bus(shards=3) as bus:
        producers = [bus.producer(shard) for shard in range(3)]
        for shard in (0, 3, -1):
            with pytest.raises(BusError):
                bus.producer(shard)
        for producer in producers:
            for _ in range(8):
                assert producer.try_push(META, BYTES)
        order = []
        for _ in range(6):
            with bus.pull_batch("train", 4) as lease:
                order.append({packet.shard for packet in lease})
        assert order == [{0}, {1}, {2}] * 2


def test_finish_lets_consumers_drain_and_end_and_refuses_pushes() -> None:
    with open_bus() as bus:
        producer = bus.producer(0)
        subscription = bus.subscribe("train", "m")
        assert producer.try_push(META, BYTES)
        bus.finish()
        assert not subscription.ended
        assert not producer.try_push(META, BYTES)
        assert producer.last_refusal is DropReason.CLOSED
        subscription.pull_batch().release()
        assert subscription.ended
        start = time.monotonic()
        assert len(subscription.pull_batch(timeout_s=120)) == 0
        assert time.monotonic() - start < 60
        assert_balanced(bus)


def test_finish_wakes_a_sleeping_consumer() -> None:
    with open_bus() as bus:
        subscription = bus.subscribe("train", "m")
        timer = threading.Timer(0.05, bus.finish)
        timer.start()
        start = time.monotonic()
        assert len(subscription.pull_batch(timeout_s=120)) == 0
        assert time.monotonic() - start < 60
        timer.join()


def test_a_sleeping_consumer_is_woken_by_a_push() -> None:
    with open_bus() as bus:
        producer = bus.producer(0)
        subscription = bus.subscribe("train", "m")
        timer = threading.Timer(0.02, lambda: producer.try_push(META, BYTES))
        timer.start()
        with subscription.pull_batch(timeout_s=120) as lease:
            assert len(lease) == 1
        timer.join()


def test_pull_waits_for_min_packets_and_returns_what_there_is() -> None:
    with open_bus() as bus:
        bus.push(META, BYTES)
        with bus.pull_batch("train", 8, 0.01, 3) as lease:
            assert len(lease) == 1


def test_the_compiled_checksum_is_the_contracts() -> None:
    from asys_bench.backends.cpp_spmc import _spmc

    for nbytes in (0, 1, 7, 8, 9, 1000):
        data = np.random.default_rng(nbytes).bytes(nbytes)
        assert _spmc.crc32c(data) == crc32c.crc32c(data)


def test_names_are_interned_once_and_bounded() -> None:
    with open_bus(names=("x",)) as bus:
        assert [bus.name_of(0), bus.intern("x"), bus.intern("y"), bus.intern("x")] == [
            "identity",
            1,
            2,
            1,
        ]
        with pytest.raises(BusError, match="200"):
            bus.intern("é" * 101)
        with pytest.raises(BusError, match="99"):
            bus.name_of(99)


def test_a_bus_holds_sixty_three_members_and_takes_another_after_one_left() -> None:
    with open_bus() as bus:
        members = [bus.subscribe("train", str(i)) for i in range(63)]
        with pytest.raises(BusError, match="63"):
            bus.subscribe("train", "one too many")
        members[5].close()
        bus.subscribe("train", "fits")


def test_a_closed_bus_says_so_and_closing_twice_is_fine() -> None:
    with open_bus() as bus:
        bus.close()
        bus.close()
        with pytest.raises(BusError, match="closed"):
            bus.account()


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(16, requires_grad=True), torch.nn.Parameter(torch.ones(16)), torch.ones(4, 4)[:1],
     torch.ones(0)],
    ids=["requires_grad", "parameter", "slice", "empty"],
)  # fmt: skip
def test_every_contiguous_tensor_is_accepted(tensor: torch.Tensor) -> None:
    with open_bus() as bus:
        assert bus.push(META, tensor)
        with bus.pull_batch("train") as lease:
            assert bytes(lease.packets[0].payload) == tensor.detach().numpy().tobytes()
