"""What the bus tests share: packets with checkable contents, and waiting for a quiet account."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from asys_bench.contracts.bus import (
    BaseDataBus,
    BusClient,
    BusPlugin,
    BusProducer,
    BusRequest,
    BusSubscription,
    GroupSpec,
    Lease,
)
from asys_bench.contracts.packet import ActivationPacket, PacketMeta

U8 = 5
"""The dtype code of uint8."""
PATIENCE_S = 120.0
"""On a machine that is busy with other things."""


def eventually(check: Callable[[], object], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Wait for `check`: for what happens in the background, in another thread or process."""
    deadline = time.monotonic() + timeout_s
    pause_s = 0.0002
    while not check():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(pause_s)
        pause_s = min(0.02, pause_s * 1.5)


def body_of(number: int, nbytes: int) -> bytes:
    """A payload that says which one it is and shows any torn byte."""
    pattern = bytes((number * 31 + i * 7) & 0xFF for i in range(min(nbytes, 251)))
    return (pattern * (nbytes // 251 + 1))[:nbytes]


def meta_of(number: int, nbytes: int, hook_id: int = 0) -> PacketMeta:
    """A meta whose `host_step` is the number that `body_of` used."""
    return PacketMeta(hook_id, 0, U8, (nbytes,), host_step=number)


def is_whole(packet: ActivationPacket) -> bool:
    """The payload is what `body_of` made for this packet."""
    return bytes(packet.payload) == body_of(packet.host_step, packet.payload.nbytes)


def push_numbers(
    producer: BusProducer, first: int, count: int, nbytes: int = 100, hook_id: int = 0
) -> None:
    """Push packets `first`.. and insist that each was accepted."""
    for number in range(first, first + count):
        accepted = producer.try_push(meta_of(number, nbytes, hook_id), body_of(number, nbytes))
        assert accepted, f"packet {number} was refused: {producer.last_refusal}"


def pull_some(
    subscription: BusSubscription, most: int = 64, timeout_s: float = PATIENCE_S
) -> Lease:
    """A lease that is not empty."""
    deadline = time.monotonic() + timeout_s
    while True:
        lease = subscription.pull_batch(most, 0.2)
        if len(lease):
            return lease
        assert time.monotonic() < deadline, f"nothing came within {timeout_s} s"


def pull_numbers(
    subscription: BusSubscription, count: int, timeout_s: float = PATIENCE_S
) -> list[int]:
    """Read, check and acknowledge exactly `count` packets."""
    numbers: list[int] = []
    deadline = time.monotonic() + timeout_s
    while len(numbers) < count:
        with subscription.pull_batch(count - len(numbers), 0.2) as lease:
            assert all(is_whole(packet) for packet in lease), "a torn packet"
            numbers.extend(packet.host_step for packet in lease)
        assert time.monotonic() < deadline, f"{len(numbers)} of {count} packets came"
    return numbers


def drain(subscription: BusSubscription, timeout_s: float = PATIENCE_S) -> list[int]:
    """Read until the bus says `ended`."""
    numbers: list[int] = []
    deadline = time.monotonic() + timeout_s
    while not subscription.ended:
        with subscription.pull_batch(64, 0.1) as lease:
            assert all(is_whole(packet) for packet in lease), "a torn packet"
            numbers.extend(packet.host_step for packet in lease)
        assert time.monotonic() < deadline, f"not ended after {timeout_s} s"
    return numbers


def read_all(subscription: BusSubscription) -> None:
    """Acknowledge everything that is there now."""
    while True:
        with subscription.pull_batch(64, 0.1) as lease:
            if not len(lease):
                return


def balanced(client: BusClient) -> bool:
    """The identity holds for every group."""
    account = client.account()
    return not any(account.imbalance(group) for group in account.groups)


def settled(client: BusClient, group: str, **expected: int) -> None:
    """Wait until `group` shows the expected counters, then insist on the identity."""

    def check() -> bool:
        account = client.account().group(group)
        return all(getattr(account, name) == value for name, value in expected.items())

    try:
        eventually(check, f"group {group}: {expected}")
    except AssertionError as error:
        raise AssertionError(f"{error}; it is {client.account()}") from None
    assert balanced(client), client.account()


@dataclass
class Buses:
    """Makes buses of one plugin and closes them."""

    plugin: BusPlugin
    made: list[BaseDataBus] = field(default_factory=list)

    def __call__(
        self,
        *groups: GroupSpec,
        shards: int = 1,
        packets: int = 256,
        nbytes: int = 4 << 20,
        names: tuple[str, ...] = ("layer.a", "layer.b"),
        checksum: bool = False,
        source: int = 0,
    ) -> BaseDataBus:
        request = BusRequest(
            groups=groups or (GroupSpec("train"),),
            shards=shards,
            source=source,
            capacity_packets=packets,
            capacity_bytes=nbytes,
            checksum=checksum,
            names=names,
            options=self.plugin.options(),
        )
        bus = self.plugin.build(request)
        self.made.append(bus)
        return bus

    def close(self) -> None:
        for bus in self.made:
            bus.close()
