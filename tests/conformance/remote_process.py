"""The far side of `processes.Remote`, run as a script: obeys JSON commands on a Unix socket.

As a nursery it imports everything once, then forks a child per command; the child attaches to (or
owns) a bus and does what the test says. It starts no thread before it forks.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from typing import Any

from asys_bench.contracts.bus import (
    AttachedProducer,
    BaseDataBus,
    BusClient,
    BusHandle,
    BusPlugin,
    BusProducer,
    BusRequest,
    BusSubscription,
    Delivery,
    GroupSpec,
    Lease,
)
from asys_bench.contracts.packet import PacketMeta
from asys_bench.registry import registry

MAX_MESSAGE = 1 << 20


def spec_of(data: dict[str, Any]) -> GroupSpec:
    """A GroupSpec from JSON."""
    hooks = None if data["hooks"] is None else tuple(data["hooks"])
    return GroupSpec(data["name"], Delivery(data["delivery"]), hooks)


def body_of(number: int, nbytes: int) -> bytes:
    """As `support.body_of`; this file stands alone."""
    pattern = bytes((number * 31 + i * 7) & 0xFF for i in range(min(nbytes, 251)))
    return (pattern * (nbytes // 251 + 1))[:nbytes]


class Puppet:
    """One process under a test's command; each method is a command and returns its JSON reply."""

    def __init__(self) -> None:
        self.client: BusClient
        self.bus: BaseDataBus
        self.producer: BusProducer
        self.attached: AttachedProducer
        self.subscription: BusSubscription
        self.lease: Lease
        self.reply_fds: tuple[int, ...] = ()

    def attach(self, fds: list[int], handle: dict[str, Any]) -> int:
        plugin = registry("backend").get(handle["backend"], BusPlugin)
        self.client = plugin.attach(BusHandle.from_dict(handle, fds))
        return os.getpid()

    def own(
        self, fds: list[int], backend: str, groups: list[dict[str, Any]], shards: int
    ) -> dict[str, Any]:
        plugin = registry("backend").get(backend, BusPlugin)
        specs = tuple(spec_of(group) for group in groups)
        options = plugin.options()
        request = BusRequest(specs, shards=shards, capacity_packets=256, options=options)
        self.bus = plugin.build(request)
        self.producer = self.bus.producer()
        handle = self.bus.handle()
        self.reply_fds = handle.fds
        return handle.to_dict()

    def push(self, fds: list[int], first: int, count: int, nbytes: int) -> int:
        accepted = 0
        for number in range(first, first + count):
            meta = PacketMeta(0, 0, 5, (nbytes,), host_step=number)
            accepted += self.producer.try_push(meta, body_of(number, nbytes))
        return accepted

    def begin_write(self, fds: list[int], nbytes: int) -> int:
        reservation = self.producer.reserve(nbytes)
        assert reservation is not None
        reservation.view[: nbytes // 2] = bytes(nbytes // 2)
        self.reservation = reservation
        return nbytes

    def produce(self, fds: list[int], shard: int, source: int) -> int:
        self.attached = self.client.attach_producer(shard, source)
        self.producer = self.attached
        return os.getpid()

    def refusal(self, fds: list[int]) -> str | None:
        return self.producer.last_refusal

    def push_waiting(self, fds: list[int], number: int, nbytes: int, timeout_s: float) -> bool:
        meta = PacketMeta(0, 0, 5, (nbytes,), host_step=number)
        return self.producer.push(meta, body_of(number, nbytes), timeout_s)

    def fill_ratio(self, fds: list[int]) -> float:
        return self.attached.fill_ratio()

    def end_production(self, fds: list[int]) -> None:
        self.attached.close()

    def subscribe(self, fds: list[int], group: str, member: str, late: bool = False) -> str:
        self.subscription = self.client.subscribe(group, member, GroupSpec(group) if late else None)
        return member

    def pull(self, fds: list[int], most: int, timeout_s: float) -> list[int]:
        self.lease = self.subscription.pull_batch(most, timeout_s)
        for packet in self.lease:
            whole = body_of(packet.host_step, packet.payload.nbytes)
            assert bytes(packet.payload) == whole, f"packet {packet.host_step} is torn"
        return [packet.host_step for packet in self.lease]

    def release(self, fds: list[int]) -> int:
        return self.lease.release()

    def drain(self, fds: list[int], timeout_s: float) -> list[int]:
        numbers: list[int] = []
        deadline = time.monotonic() + timeout_s
        while not self.subscription.ended and time.monotonic() < deadline:
            numbers += self.pull(fds, 16, 0.1)
            self.lease.release()
        assert self.subscription.ended, f"not ended after {timeout_s} s"
        return numbers

    def idle_cpu_s(self, fds: list[int], duration_s: float) -> float:
        started = time.process_time()
        deadline = time.monotonic() + duration_s
        while time.monotonic() < deadline:
            self.subscription.pull_batch(16, 0.05).release()
        return time.process_time() - started

    def ended(self, fds: list[int]) -> bool:
        return self.subscription.ended

    def account(self, fds: list[int]) -> dict[str, Any]:
        account = self.client.account()
        groups = {
            g.group: [g.delivered, g.lost_in_flight, g.dead_lettered, g.ready, g.missed]
            for g in account.groups
        }
        unbalanced = [g.group for g in account.groups if account.imbalance(g)]
        return {"produced": account.produced, "groups": groups, "unbalanced": unbalanced}

    def retire(self, fds: list[int], group: str) -> None:
        self.client.retire(group)

    def name_of(self, fds: list[int], name_id: int) -> str:
        return self.client.name_of(name_id)

    def close(self, fds: list[int]) -> None:
        self.client.close()


def obey(control: socket.socket) -> None:
    """Carry out commands until the test hangs up."""
    puppet = Puppet()
    while True:
        data, fds, _, _ = socket.recv_fds(control, MAX_MESSAGE, 64)
        if not data:
            return
        command = json.loads(data)
        puppet.reply_fds = ()
        try:
            value = getattr(puppet, command["do"])(fds, **command["args"])
            reply = {"value": value}
        except Exception as error:  # noqa: BLE001 - reported to the test
            reply = {"error": f"{type(error).__name__}: {error}"}
        for fd in fds:
            os.close(fd)
        socket.send_fds(control, [json.dumps(reply).encode()], puppet.reply_fds)


def nurse(control: socket.socket) -> None:
    """Fork a puppet for each socket received; the kernel reaps them."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    registry("backend").failures()  # imports every backend once, here
    control.send(b"ready")
    while True:
        data, fds, _, _ = socket.recv_fds(control, 16, 1)
        if not data:
            return
        pid = os.fork()
        if pid == 0:
            control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            child = socket.socket(fileno=fds[0])
            obey(child)
            os._exit(0)
        os.close(fds[0])
        control.send(str(pid).encode())


if __name__ == "__main__":
    role = nurse if sys.argv[1] == "nurse" else obey
    role(socket.socket(fileno=int(sys.argv[2])))
