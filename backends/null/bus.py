"""`NullBus`: accepts every packet, counts it, and lets it go."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence

from asys_bench.contracts.bus import (
    BaseDataBus,
    BusAccount,
    BusClient,
    BusError,
    BusHandle,
    BusProducer,
    BusRequest,
    BusSubscription,
    DropReason,
    GroupAccount,
    GroupSpec,
    Lease,
    Payload,
    Reservation,
)
from asys_bench.contracts.packet import ActivationPacket, PacketMeta


class NullProducer(BusProducer):
    """Counts; reads neither meta nor payload."""

    def __init__(self, bus: NullBus, shard: int) -> None:
        self.shard = shard
        self.accepted = 0
        self.accepted_bytes = 0
        self.closed_drops = 0
        self._bus = bus

    @property
    def last_refusal(self) -> DropReason | None:
        return DropReason.CLOSED if self._bus.finished else None

    def try_push(self, meta: PacketMeta, payload: Payload) -> bool:
        return self.count(
            len(payload) if isinstance(payload, bytes | bytearray) else payload.nbytes
        )

    def push(self, meta: PacketMeta, payload: Payload, timeout_s: float) -> bool:
        return self.try_push(meta, payload)

    def reserve(self, nbytes: int) -> Reservation | None:
        if self._bus.finished:
            self.count(0)
            return None
        return NullReservation(self, nbytes)

    def count(self, nbytes: int) -> bool:
        """One offered packet."""
        self._bus.check_pid()
        if self._bus.finished:
            self.closed_drops += 1
            return False
        self.accepted += 1
        self.accepted_bytes += nbytes
        return True


class NullReservation(Reservation):
    """Scratch memory that goes nowhere."""

    def __init__(self, producer: NullProducer, nbytes: int) -> None:
        self._producer = producer
        self._nbytes = nbytes
        self._open = True
        self.view = memoryview(bytearray(nbytes))

    def commit(self, meta: PacketMeta, nbytes: int | None = None) -> bool:
        if not self._open:
            raise BusError("this reservation was committed or aborted already")
        self._open = False
        return self._producer.count(self._nbytes if nbytes is None else nbytes)

    def abort(self) -> None:
        self._open = False


class EmptyLease(Lease):
    """No packets, ever."""

    @property
    def packets(self) -> Sequence[ActivationPacket]:
        return ()

    def release(self) -> int:
        return 0

    def give_back(self) -> None:
        return None


class NullSubscription(BusSubscription):
    """Waits as told and gets nothing."""

    def __init__(self, group: str, member: str, finished: threading.Event) -> None:
        self.group = group
        self.member = member
        self._finished = finished

    def pull_batch(
        self, max_packets: int = 64, timeout_s: float = 0.05, min_packets: int = 1
    ) -> Lease:
        deadline = time.monotonic() + timeout_s
        while not self._finished.is_set() and (left_s := deadline - time.monotonic()) > 0:
            self._finished.wait(min(left_s, 0.05))
        return EmptyLease()

    @property
    def ended(self) -> bool:
        return self._finished.is_set()

    def close(self) -> None:
        return None


class NullBus(BaseDataBus):
    """Every accepted packet is `missed` by every group: nothing is there to be read."""

    def __init__(self, request: BusRequest) -> None:
        super().__init__()
        self.finished = False
        self._finished = threading.Event()
        self._groups = [spec.name for spec in request.groups]
        self._shards = request.shards
        self._names = ["identity", *request.names]
        self._producers: dict[int, NullProducer] = {}
        self._pid = os.getpid()

    def producer(self, shard: int = 0) -> NullProducer:
        self.check_pid()
        if not 0 <= shard < self._shards:
            raise BusError(f"no shard {shard}; this bus has 0..{self._shards - 1}")
        if shard in self._producers:
            raise BusError(f"the producer of shard {shard} was already handed out; a shard has one")
        self._producers[shard] = producer = NullProducer(self, shard)
        return producer

    def intern(self, name: str) -> int:
        if not 0 < len(name.encode()) <= 200:
            raise BusError(f"a name has 1..200 bytes of UTF-8: {name!r}")
        if name not in self._names:
            if len(self._names) > 0xFFFF:
                raise BusError("the name table is full (65536 names)")
            self._names.append(name)
        return self._names.index(name)

    def retire(self, group: str) -> None:
        del group  # nobody reads, so nobody can hold anything up

    def name_of(self, name_id: int) -> str:
        if not 0 <= name_id < len(self._names):
            raise BusError(f"no interned name {name_id}; the bus has {len(self._names)}")
        return self._names[name_id]

    def handle(self) -> BusHandle:
        raise BusError("the null bus lives in one process and has no handle")

    def subscribe(self, group: str, member: str, spec: GroupSpec | None = None) -> BusSubscription:
        self.check_pid()
        if group not in self._groups:
            if spec is None:
                raise BusError(f"no group {group!r}; valid: {self._groups}, or pass a GroupSpec")
            self._groups.append(group)
        return NullSubscription(group, member, self._finished)

    def account(self) -> BusAccount:
        producers = self._producers.values()
        accepted = sum(producer.accepted for producer in producers)
        closed = sum(producer.closed_drops for producer in producers)
        dropped = {reason.value: 0 for reason in DropReason} | {DropReason.CLOSED.value: closed}
        return BusAccount(
            produced=accepted + closed,
            dropped=dropped,
            produced_bytes=sum(producer.accepted_bytes for producer in producers),
            groups=tuple(GroupAccount(g, 0, 0, 0, 0, 0, missed=accepted) for g in self._groups),
        )

    def fill_ratio(self) -> float:
        return 0.0

    def finish(self) -> None:
        self.finished = True
        self._finished.set()

    def close(self) -> None:
        self.finish()

    def check_pid(self) -> None:
        """Raise BusError in a forked child."""
        if os.getpid() != self._pid:
            raise BusError("a forked child cannot use its parent's bus")


def attach(handle: BusHandle) -> BusClient:
    """There is nothing to attach to."""
    raise BusError("the null bus lives in one process; it cannot be attached to")
