"""One producer, one consumer, one process: what every bus does with a packet."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from asys_bench.contracts.bus import BusError, BusPlugin, BusRequest, DropReason, GroupSpec
from asys_bench.contracts.packet import DTYPES, PacketError, PacketMeta

from .support import (
    PATIENCE_S,
    U8,
    Buses,
    balanced,
    body_of,
    drain,
    eventually,
    is_whole,
    meta_of,
    pull_numbers,
    pull_some,
    push_numbers,
    read_all,
    settled,
)


def test_every_field_of_a_packet_arrives(make_bus: Buses) -> None:
    bus = make_bus(source=7, shards=2)
    hook_id = bus.intern("layer.b")
    meta = PacketMeta(
        hook_id=hook_id,
        kind=2,
        dtype=0,
        shape=(2, 3),
        host_step=2**40,
        timestamp_ns=2**60,
        weights_version=9,
        encoding_id=3,
        params=bytes(range(16)),
        sampling_rate=0.25,
        call_index=11,
        microbatch=5,
        token_position=-1,
    )
    values = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    with bus.subscribe("train", "a") as reader:
        assert bus.producer(1).try_push(meta, values)
        with pull_some(reader) as lease:
            (packet,) = lease.packets
            expected = {**meta._asdict(), "seq": 0, "source": 7, "shard": 1, "crc": None}
            expected["dtype"] = torch.float32
            for name, value in expected.items():
                assert getattr(packet, name) == value, name
            assert torch.equal(packet.raw_tensor().clone(), values)
            assert bus.name_of(packet.hook_id) == "layer.b"
            del packet


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_every_dtype_is_byte_exact(make_bus: Buses, dtype: torch.dtype) -> None:
    bus = make_bus()
    raw = torch.randint(0, 256, (40 * dtype.itemsize,), dtype=torch.uint8)
    if dtype is torch.bool:
        raw &= 1
    tensor = raw.view(dtype).reshape(5, 8)
    with bus.subscribe("train", "a") as reader:
        assert bus.push(PacketMeta(0, 0, DTYPES.index(dtype), (5, 8)), tensor)
        with pull_some(reader) as lease:
            decoded = lease.packets[0].raw_tensor()
            assert decoded.dtype is dtype
            assert tuple(decoded.shape) == (5, 8)
            assert torch.equal(decoded.reshape(-1).view(torch.uint8), raw)
            del decoded


@pytest.mark.parametrize(
    "nbytes", [0, 1, 63, 64, 65, 127, 4095, 4096, 65536, 65537, 1 << 20, (1 << 20) + 1, 16 << 20]
)
def test_payloads_of_any_size_arrive_whole(make_bus: Buses, nbytes: int) -> None:
    bus = make_bus(nbytes=64 << 20, checksum=True)
    body = np.random.default_rng(nbytes).bytes(nbytes)
    with bus.subscribe("train", "a") as reader:
        for number in range(2):
            assert bus.push(meta_of(number, nbytes), body)
        for number in range(2):
            with pull_some(reader, most=1) as lease:
                assert lease.packets[0].host_step == number
                assert lease.packets[0].payload == body
                assert lease.packets[0].verify()
    settled(bus, "train", delivered=2)
    assert bus.account().produced_bytes == 2 * nbytes


@pytest.mark.parametrize(
    "payload",
    [
        b"abcdefgh",
        bytearray(b"abcdefgh"),
        memoryview(b"abcdefgh"),
        memoryview(np.frombuffer(b"abcdefgh", np.int32)),
        np.frombuffer(b"abcdefgh", np.float64),
        np.frombuffer(b"abcdefgh", np.uint8).reshape(2, 4),
        torch.tensor(list(b"abcdefgh"), dtype=torch.uint8),
    ],
    ids=lambda payload: type(payload).__name__,
)
def test_any_contiguous_buffer_is_a_payload(make_bus: Buses, payload: object) -> None:
    bus = make_bus()
    with bus.subscribe("train", "a") as reader:
        assert bus.push(meta_of(0, 8), payload)  # type: ignore[arg-type]
        with pull_some(reader) as lease:
            assert bytes(lease.packets[0].payload) == b"abcdefgh"


@pytest.mark.parametrize(
    "payload", [np.zeros((4, 4))[:, 0], torch.zeros(4, 4)[:, 0]], ids=["numpy", "torch"]
)
def test_a_payload_that_is_not_contiguous_is_an_error_and_counts_nothing(
    make_bus: Buses, payload: object
) -> None:
    bus = make_bus()
    with pytest.raises(PacketError):
        bus.push(meta_of(0, 32), payload)  # type: ignore[arg-type]
    assert bus.account().produced == 0
    assert bus.push(meta_of(0, 4), b"good")


def test_a_shape_of_nine_dimensions_is_an_error_and_counts_nothing(make_bus: Buses) -> None:
    bus = make_bus()
    with pytest.raises(PacketError):
        bus.push(PacketMeta(0, 0, U8, (1,) * 9), b"x")
    assert bus.account().produced == 0


def test_the_payload_is_copied_at_once(make_bus: Buses) -> None:
    bus = make_bus()
    values = np.full(100, 1, np.uint8)
    with bus.subscribe("train", "a") as reader:
        bus.push(meta_of(0, 100), values)
        values[:] = 2
        with pull_some(reader) as lease:
            assert bytes(lease.packets[0].payload) == bytes([1]) * 100


def test_a_full_bus_refuses_and_counts_and_recovers(make_bus: Buses) -> None:
    bus = make_bus(packets=16, nbytes=64 << 10)
    producer = bus.producer()
    with bus.subscribe("train", "a") as reader:
        accepted = 0
        while producer.try_push(meta_of(accepted, 1024), body_of(accepted, 1024)):
            assert producer.last_refusal is None
            accepted += 1
            assert accepted < 10_000, "the bus never fills"
        assert accepted >= 8
        assert producer.last_refusal is DropReason.FULL
        assert bus.fill_ratio() > 0.4
        assert bus.account().dropped["full"] == 1
        settled(bus, "train", ready=accepted)
        assert pull_numbers(reader, accepted) == list(range(accepted))
        settled(bus, "train", delivered=accepted, ready=0)
        eventually(lambda: bus.fill_ratio() < 0.4, "room again")
        push_numbers(producer, accepted, 1, 1024)
        assert pull_numbers(reader, 1) == [accepted]
        settled(bus, "train", delivered=accepted + 1)
    assert bus.account().produced == accepted + 2


def test_the_capacity_is_there_whatever_was_sent_before(plugin: BusPlugin) -> None:
    """Small and large packets in turn, as a rollout and its training batches are."""
    capacity = 4 << 20
    request = BusRequest(
        groups=(GroupSpec("train"),), capacity_bytes=capacity, options=plugin.options()
    )
    with plugin.build(request) as bus:
        producer = bus.producer(0)
        small, large = np.zeros(2048, np.uint8), np.zeros(65536, np.uint8)
        with bus.subscribe("train", "a") as reader:
            for turn in range(12):
                for payload in [small] * 64 + [large] * 20:
                    meta = PacketMeta(0, 0, U8, payload.shape)
                    if not producer.try_push(meta, payload):
                        assert turn % 3 == 2, "full although everything had been read"
                        break
                if turn % 3 != 1:  # sometimes the reader lags a whole turn behind
                    read_all(reader)
            read_all(reader)
        before = bus.account().produced_bytes
        while all(producer.try_push(PacketMeta(0, 0, U8, p.shape), p) for p in (small, large)):
            pass
        settled(bus, "train")
        held = bus.account().produced_bytes - before
        assert held >= 0.8 * capacity, f"full at {held} of {capacity} bytes"
        assert bus.fill_ratio() >= 0.8
        with bus.subscribe("train", "a") as reader:
            read_all(reader)
            eventually(lambda: bus.fill_ratio() < 0.1, "an empty bus")
        assert balanced(bus)


def test_sequence_numbers_count_accepted_packets_only(make_bus: Buses) -> None:
    bus = make_bus(packets=8, nbytes=1 << 20)
    producer = bus.producer()
    seqs: list[int] = []
    with bus.subscribe("train", "a") as reader:
        for _ in range(3):
            while producer.try_push(meta_of(0, 8), bytes(8)):
                pass
            with pull_some(reader) as lease:
                seqs += [packet.seq for packet in lease]
            eventually(lambda: bus.fill_ratio() < 0.9, "room")
    assert seqs == list(range(len(seqs)))


def test_push_waits_for_room_and_counts_one_offer(make_bus: Buses) -> None:
    bus = make_bus(packets=8)
    producer = bus.producer()
    with bus.subscribe("train", "a") as reader:
        count = 0
        while producer.try_push(meta_of(count, 8), body_of(count, 8)):
            count += 1
        before = bus.account().produced
        assert not producer.push(meta_of(99, 8), body_of(99, 8), timeout_s=0.05)
        assert producer.last_refusal is DropReason.TIMEOUT
        account = bus.account()
        assert account.produced == before + 1
        assert account.dropped["timeout"] == 1
        pull_numbers(reader, count)
        assert producer.push(meta_of(99, 8), body_of(99, 8), timeout_s=PATIENCE_S)
        assert pull_numbers(reader, 1) == [99]
    assert balanced(bus)


def test_a_payload_that_can_never_fit_is_too_large(make_bus: Buses) -> None:
    bus = make_bus(nbytes=1 << 20)
    producer = bus.producer()
    assert not producer.try_push(meta_of(0, 32 << 20), bytes(32 << 20))
    assert producer.last_refusal is DropReason.TOO_LARGE
    assert not producer.push(meta_of(0, 32 << 20), bytes(32 << 20), timeout_s=5.0)
    assert producer.reserve(32 << 20) is None
    assert bus.account().dropped["too_large"] == 3
    assert balanced(bus)


def test_a_reservation_is_filled_in_place_and_cut_at_commit(make_bus: Buses) -> None:
    bus = make_bus(checksum=True)
    producer = bus.producer()
    with bus.subscribe("train", "a") as reader:
        reservation = producer.reserve(1000)
        assert reservation is not None
        assert reservation.view.nbytes == 1000
        np.frombuffer(reservation.view, np.uint8)[:] = np.frombuffer(body_of(3, 1000), np.uint8)
        assert reservation.commit(meta_of(3, 600), 600)
        aborted = producer.reserve(50)
        assert aborted is not None
        aborted.view[:] = bytes(50)
        aborted.abort()
        push_numbers(producer, 4, 1, 20)
        with pull_some(reader) as lease:
            assert [packet.host_step for packet in lease] == [3, 4][: len(lease)]
            assert is_whole(lease.packets[0])
            assert lease.packets[0].verify()
            assert [packet.seq for packet in lease] == [0, 1][: len(lease)]
    assert bus.account().produced == 2
    assert balanced(bus)


def test_a_reservation_on_a_full_bus_is_refused_and_counted(make_bus: Buses) -> None:
    bus = make_bus(packets=8)
    producer = bus.producer()
    while producer.try_push(meta_of(0, 8), bytes(8)):
        pass
    assert producer.reserve(8) is None
    assert producer.last_refusal is DropReason.FULL
    assert bus.account().dropped["full"] == 2
    assert balanced(bus)


def test_rows_of_an_array_are_pushed_until_the_first_refusal(make_bus: Buses) -> None:
    bus = make_bus(packets=16)
    rows = np.arange(64 * 32, dtype=np.uint8).reshape(64, 32)
    producer = bus.producer()
    accepted = producer.try_push_many(meta_of(0, 32), rows)
    assert 8 <= accepted < 64
    account = bus.account()
    assert account.produced == accepted + 1
    assert account.dropped["full"] == 1
    with bus.subscribe("train", "a") as reader:
        seen: list[bytes] = []
        while len(seen) < accepted:
            with pull_some(reader) as lease:
                seen += [bytes(packet.payload) for packet in lease]
    assert seen == [row.tobytes() for row in rows[:accepted]]


def test_a_checksum_notices_a_changed_payload(make_bus: Buses) -> None:
    bus = make_bus(checksum=True)
    push_numbers(bus.producer(), 0, 1, 64)
    with bus.subscribe("train", "a") as reader, pull_some(reader) as lease:
        packet = lease.packets[0]
        assert packet.crc is not None
        assert packet.verify()


def test_after_finish_consumers_drain_and_end_and_pushes_are_closed(make_bus: Buses) -> None:
    bus = make_bus()
    producer = bus.producer()
    push_numbers(producer, 0, 20)
    with bus.subscribe("train", "a") as reader:
        assert not reader.ended
        bus.finish()
        assert not producer.try_push(meta_of(99, 8), bytes(8))
        assert producer.last_refusal is DropReason.CLOSED
        assert drain(reader) == list(range(20))
        with reader.pull_batch(4, 0.0) as lease:
            assert len(lease) == 0
        settled(bus, "train", delivered=20)
    assert bus.account().dropped["closed"] == 1


def test_a_claim_keeps_the_group_from_ending(make_bus: Buses) -> None:
    bus = make_bus()
    push_numbers(bus.producer(), 0, 1)
    with bus.subscribe("train", "a") as reader:
        lease = pull_some(reader)
        bus.finish()
        lease.release()
        eventually(lambda: len(reader.pull_batch(1, 0.01)) == 0 and reader.ended, "the end")


def test_an_empty_pull_waits_its_timeout_and_returns_an_empty_lease(make_bus: Buses) -> None:
    bus = make_bus()
    with bus.subscribe("train", "a") as reader, reader.pull_batch(4, 0.02) as lease:
        assert len(lease) == 0
        assert list(lease) == []
        assert lease.release() == 0


def test_min_packets_waits_for_that_many_but_not_past_the_timeout(make_bus: Buses) -> None:
    bus = make_bus()
    producer = bus.producer()
    with bus.subscribe("train", "a") as reader:
        push_numbers(producer, 0, 3)
        few: list[int] = []

        def pull() -> bool:
            with reader.pull_batch(8, 0.02, min_packets=5) as lease:
                few.extend(packet.host_step for packet in lease)
            return len(few) >= 3

        eventually(pull, "what there is, though five are asked for")
        assert few == [0, 1, 2]
        push_numbers(producer, 3, 5)
        with reader.pull_batch(8, PATIENCE_S, min_packets=5) as lease:
            assert [packet.host_step for packet in lease] == [3, 4, 5, 6, 7]


def test_who_waits_for_several_gets_them_as_they_come_and_sees_the_end(make_bus: Buses) -> None:
    """It returns soon after the last packet that it wants, and when the bus is finished."""
    bus = make_bus()
    producer = bus.producer()

    def push() -> None:
        for _ in range(5):
            time.sleep(0.02)
            push_numbers(producer, 0, 1)

    with bus.subscribe("train", "a") as reader:
        for _ in range(2):
            thread = threading.Thread(target=push)
            began = time.monotonic()
            thread.start()
            with reader.pull_batch(64, 2 * PATIENCE_S, 5) as lease:
                assert len(lease) == 5
            assert time.monotonic() - began < PATIENCE_S
            thread.join()
        timer = threading.Timer(0.05, bus.finish)
        push_numbers(producer, 0, 1)
        timer.start()
        with reader.pull_batch(64, 2 * PATIENCE_S, 5) as lease:
            assert len(lease) == 1
        timer.join()
        while not reader.ended:  # the word may come a moment after the last packet
            with reader.pull_batch(64, 2 * PATIENCE_S, 5) as lease:
                assert len(lease) == 0
            assert time.monotonic() - began < PATIENCE_S


def test_names_are_interned_once_and_found_again(make_bus: Buses) -> None:
    bus = make_bus(names=("layer.a",))
    assert bus.intern("identity") == 0
    first = bus.intern("layer.a")
    later = bus.intern("later.ß")
    assert bus.intern("layer.a") == first
    assert len({0, first, later}) == 3
    assert bus.name_of(later) == "later.ß"
    with pytest.raises(BusError):
        bus.name_of(60_000)
    with pytest.raises(BusError):
        bus.intern("x" * 201)


def test_the_simple_verbs_work_without_producer_or_subscription(make_bus: Buses) -> None:
    with make_bus() as bus:
        assert bus.push(meta_of(1, 10), body_of(1, 10))
        with bus.pull_batch("train", 4, PATIENCE_S) as lease:
            assert [packet.host_step for packet in lease] == [1]


def test_a_shard_has_one_producer(make_bus: Buses) -> None:
    bus = make_bus(shards=2)
    bus.producer(1)
    with pytest.raises(BusError):
        bus.producer(1)
    with pytest.raises(BusError):
        bus.producer(2)


def test_an_unknown_group_is_an_error_that_names_the_valid_ones(make_bus: Buses) -> None:
    bus = make_bus(GroupSpec("train"), GroupSpec("archive"))
    with pytest.raises(BusError, match="archive"):
        bus.subscribe("tarin", "a")


def test_close_is_idempotent_and_pushing_afterwards_is_refused(make_bus: Buses) -> None:
    bus = make_bus()
    producer = bus.producer()
    push_numbers(producer, 0, 3)
    bus.close()
    bus.close()
    assert not producer.try_push(meta_of(9, 8), bytes(8))
    assert producer.last_refusal is DropReason.CLOSED


def test_a_backend_that_transports_nothing_still_accounts_for_everything(
    any_plugin: BusPlugin,
) -> None:
    buses = Buses(any_plugin)
    with buses(GroupSpec("train"), GroupSpec("archive")) as bus:
        producer = bus.producer()
        for number in range(10):
            assert producer.try_push(meta_of(number, 8), bytes(8))
        reservation = producer.reserve(8)
        assert reservation is not None
        assert reservation.commit(meta_of(10, 8))
        bus.finish()
        assert not producer.try_push(meta_of(11, 8), bytes(8))
        account = bus.account()
        assert account.produced == 12
        assert account.produced_bytes == 88
        assert account.dropped_total == 1
        assert balanced(bus)
