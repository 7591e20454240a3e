"""The bus: how packets leave the host and reach consumer processes.

Every backend does all of this and passes `tests/conformance/test_bus.py`:

- One producer per shard (a host thread or rank), many shards; a consumer reads all shards fairly.
- Consumers subscribe in groups. Every group sees every packet it selected (`GroupSpec.hooks`);
  members of a group share them.
- A group chooses `at_most_once` (training: a packet whose reader died is lost and counted) or
  `at_least_once` (archive: it is redelivered, up to `MAX_DELIVERIES`, then dead-lettered and counted).
- `try_push` never blocks and never raises for a full bus: the refusal is counted under a
  `DropReason`. A refused packet is dropped for every group alike.
- Memory is bounded and taken at start. Nothing outlives a SIGKILL of every process.
- A producer killed mid-write leaves no half packet.
- Consumers that wait use (almost) no CPU and re-check at least every 50 ms.
- The account is exact at every quiet moment, for every group:
  ``produced = delivered + dropped + lost_in_flight + dead_lettered + ready + missed``. `ready`
  includes claimed packets; an acknowledgement may settle a moment after `release` returned.
- A group that joined late ends with its last member: what it had not read counts as missed, and it
  holds nothing up. A declared group waits for its members to come back, until it is retired.

Sequence numbers start at 0 in every shard and count offered packets that were *accepted*, so a gap
in `seq` seen by a group is a packet that the group lost (or never selected), never a drop.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from pydantic import BaseModel

from asys_bench.contracts.capture_port import CapturePort, HookT, PortCells

if TYPE_CHECKING:  # a reader of the stats page and `asys-run --help` do not wait for torch
    import numpy as np
    import numpy.typing as npt
    import torch

    from asys_bench.contracts.packet import ActivationPacket, PacketMeta

MAX_DELIVERIES = 5
"""An at_least_once packet is delivered at most this often before it is dead-lettered."""

Payload: TypeAlias = "bytes | bytearray | memoryview | torch.Tensor | npt.NDArray[Any]"
"""What a producer accepts: any contiguous buffer or contiguous CPU tensor; it is copied at once."""


class Delivery(StrEnum):
    AT_MOST_ONCE = "at_most_once"
    AT_LEAST_ONCE = "at_least_once"


class DropReason(StrEnum):
    """Why a packet was refused. Refusals are outcomes, not exceptions."""

    FULL = "full"
    """A group had no room (or the ring/arena was full)."""
    TIMEOUT = "timeout"
    """`push` waited its whole timeout for room."""
    TOO_LARGE = "too_large"
    """The payload can never fit; see `BusCapabilities.max_payload_bytes`."""
    CLOSED = "closed"
    """The bus was finished or closed."""


class BusError(RuntimeError):
    """The bus cannot do what was asked (unknown group, dead owner, bad handle); says why and the fix."""


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """A consumer group.

    hooks: the interned hook names it wants; None selects every hook.
    """

    name: str
    delivery: Delivery = Delivery.AT_MOST_ONCE
    hooks: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class BusCapabilities:
    """What a backend can do, so that suites and tests skip with a reason instead of guessing."""

    transports_payload: bool = True
    """False for instrument floors (null) that deliver nothing."""
    cross_process: bool = True
    zero_copy: bool = False
    """Leases view the producer's memory."""
    shares_layout_with: tuple[str, ...] = ()
    """Backends whose handle this one can attach to."""
    joins_late: bool = True
    """Groups not declared at start may subscribe later and see packets from then on."""
    max_payload_bytes: int = 1 << 62
    survives_consumer_kill: bool = True
    shares_producers: bool = False
    """A client may take the producer of a shard (`BusClient.attach_producer`): one bus, many ranks."""


@dataclass(frozen=True, slots=True)
class GroupAccount:
    """Counters of one group, in packets.

    `missed`: offered before it joined, not selected, or left unread when it ended.
    """

    group: str
    delivered: int
    lost_in_flight: int
    dead_lettered: int
    redelivered: int
    ready: int
    missed: int = 0


@dataclass(frozen=True, slots=True)
class BusAccount:
    """Every packet offered since the bus was created."""

    produced: int
    """Offered packets, accepted or not."""
    dropped: Mapping[str, int]
    produced_bytes: int
    """Payload bytes of accepted packets."""
    groups: tuple[GroupAccount, ...]

    @property
    def dropped_total(self) -> int:
        return sum(self.dropped.values())

    def imbalance(self, group: GroupAccount) -> int:
        """0 when the identity holds for `group`; otherwise the packets unaccounted for."""
        return self.produced - (
            group.delivered
            + self.dropped_total
            + group.lost_in_flight
            + group.dead_lettered
            + group.ready
            + group.missed
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON; `imbalance` of a group is 0 where the accounting identity holds."""
        return {
            "produced": self.produced,
            "produced_bytes": self.produced_bytes,
            "dropped": {str(reason): count for reason, count in self.dropped.items()},
            "groups": [
                {**asdict(group), "imbalance": self.imbalance(group)} for group in self.groups
            ],
        }

    def group(self, name: str) -> GroupAccount:
        for account in self.groups:
            if account.group == name:
                return account
        raise BusError(f"no group {name!r}; this bus has {[g.group for g in self.groups]}")


@dataclass(frozen=True, slots=True)
class BusHandle:
    """How another process attaches: JSON-able parameters and file descriptors, never a pickle.

    `fds` are valid in this process; pass them by `pass_fds`, SCM_RIGHTS or inheritance and rebuild
    the handle with `with_fds` on the other side.
    """

    backend: str
    params: dict[str, Any]
    fds: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {"backend": self.backend, "params": self.params, "n_fds": len(self.fds)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], fds: Sequence[int] = ()) -> BusHandle:
        if len(fds) != data["n_fds"]:
            raise BusError(f"handle needs {data['n_fds']} file descriptors, got {len(fds)}")
        return cls(str(data["backend"]), dict(data["params"]), tuple(fds))


class Reservation(ABC):
    """A slot to encode into: fill `view`, then `commit` (or `abort`). One at a time per producer."""

    view: memoryview
    """Writable, exactly the reserved bytes; invalid after commit or abort."""

    @abstractmethod
    def commit(self, meta: PacketMeta, nbytes: int | None = None) -> bool:
        """Publish the first `nbytes` (default: all). False if it was refused after all (counted)."""

    @abstractmethod
    def abort(self) -> None:
        """Give the slot back; nothing was produced and nothing is counted."""


class BusProducer(ABC):
    """The single writer of one shard. Not thread-safe: one producer per thread."""

    shard: int
    max_payload_bytes: int = 1 << 62
    """A larger payload is refused however empty the bus is (`DropReason.TOO_LARGE`)."""

    @abstractmethod
    def try_push(self, meta: PacketMeta, payload: Payload) -> bool:
        """Copy `payload` and publish it. False: refused, counted under `last_refusal`. Never blocks.

        Raises:
            PacketError: the meta cannot be written in a header, or the payload is not contiguous.
        """

    @abstractmethod
    def push(self, meta: PacketMeta, payload: Payload, timeout_s: float) -> bool:
        """As `try_push`, but waits up to `timeout_s` for room; one offer, one count."""

    @abstractmethod
    def reserve(self, nbytes: int) -> Reservation | None:
        """Room for `nbytes`, or None: refused and counted (as one offered packet)."""

    def try_push_many(self, meta: PacketMeta, payloads: npt.NDArray[Any] | torch.Tensor) -> int:
        """Push each row of a C-contiguous 2-D array as one packet; returns how many were accepted.

        It stops at the first refusal, counts that one, and does not offer the rest.
        """
        for index in range(len(payloads)):
            if not self.try_push(meta, payloads[index]):
                return index
        return len(payloads)

    def try_push_frames(
        self, meta: PacketMeta, data: memoryview, places: npt.NDArray[np.int64]
    ) -> int:
        """Push parts of `data` as one packet each; returns how many were accepted.

        Each part is a frame, the header of a packet and its payload (`contracts.origin`). Hook and kind are
        those of its header, the shape is its size, all else is from `meta`. Stops as `try_push_many` does.
        A bus may publish what it accepts at once: a producer that is killed in the call has published all of
        it, a first part of it or nothing.

        places: [n, 2], C-contiguous: where in `data` a frame begins, and its bytes.

        Raises:
            ValueError: a frame does not lie in `data`, or is shorter than a header.
        """
        from asys_bench.contracts.packet import push_frames

        return push_frames(self.try_push, meta, data, places)

    def capture_port(self, meta: PacketMeta, cells: PortCells) -> CapturePort | None:
        """A shortcut for a hook whose packets have the hook, kind and encoding of `meta`, or None."""
        del meta, cells
        return None

    def hook_class(self, hook: type[HookT]) -> type[HookT]:
        """The class to make forward hooks of that have a `direct` of this producer's port: `hook`, or
        a subclass whose calls are compiled."""
        return hook

    @property
    @abstractmethod
    def last_refusal(self) -> DropReason | None:
        """Why the last offer was refused; None when it was accepted."""


class AttachedProducer(BusProducer):
    """The writer of one shard in a process that does not own the bus (another rank of a node).

    Its death loses the packet that it was writing and nothing else: consumers and the other shards go
    on. A shard has one producer for its life, so nobody can take it over.
    """

    @abstractmethod
    def fill_ratio(self) -> float:
        """How full this shard is, 0..1. Cheap enough for every packet."""

    @abstractmethod
    def close(self) -> None:
        """No more packets from here; everything accepted has reached the bus. Idempotent.

        Do it before the owner finishes the bus: whoever pushes later is refused (`CLOSED`).
        """


class Lease(ABC):
    """A batch of claimed packets; views are valid until it is released.

    ``with subscription.pull_batch(...) as lease:`` releases (acknowledges) on a normal exit. If the
    body raises, the packets are given back: redelivered (at_least_once) or lost (at_most_once).
    Leaving it while views of its payloads are alive raises BufferError and keeps the lease, so the
    memory is never reused under a reader; drop the views and call `release` again.
    """

    @property
    @abstractmethod
    def packets(self) -> Sequence[ActivationPacket]:
        """All of them, in order.

        Raises:
            PacketError: the header of one of them is damaged; give the batch back.
        """

    def headers(self) -> bytes:
        """The headers of all of them, in order, 128 bytes each (`contracts.packet.HEADERS` reads them).

        Raises:
            PacketError: one of them is damaged; give the batch back.
        """
        from asys_bench.contracts.packet import headers_of

        return headers_of(self.packets)

    def copy_frames(self, out: memoryview, places: npt.NDArray[np.int64]) -> None:
        """Copy packets, header and payload each.

        places: [n, 2], C-contiguous: which packet of the lease, and where in `out` it begins.

        Raises:
            ValueError: no such packet, or `out` has no room for it there.
        """
        from asys_bench.contracts.packet import copy_frames

        copy_frames(self.packets, out, places)

    def __len__(self) -> int:
        return len(self.packets)

    def __iter__(self) -> Iterator[ActivationPacket]:
        return iter(self.packets)

    @abstractmethod
    def release(self) -> int:
        """Acknowledge. Returns how many of its packets were delivered: fewer than `len` means that
        the lease was taken away (this process was declared dead) and those results must be dropped.

        Raises:
            BufferError: a payload view is still alive.
        """

    @abstractmethod
    def give_back(self) -> None:
        """Return the packets unprocessed (the consumer failed)."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is None:
            self.release()
        else:
            self.give_back()


class BusSubscription(ABC):
    """One member of one group."""

    group: str
    member: str

    @abstractmethod
    def pull_batch(
        self, max_packets: int = 64, timeout_s: float = 0.05, min_packets: int = 1
    ) -> Lease:
        """Claim up to `max_packets`, waiting up to `timeout_s` until `min_packets` are there.

        Returns what there is after the wait, possibly an empty lease; order within a shard is kept. Several
        leases may be held at a time, and released in any order. A wait for more than one packet may look for
        them now and then, up to some 50 ms after they came: nobody has to wake it for each.
        """

    @property
    @abstractmethod
    def ended(self) -> bool:
        """True once the producers finished (or died) and nothing is left for this group to claim.

        It may turn true a moment after the last packet came: read on until it is.
        """

    @abstractmethod
    def close(self) -> None:
        """Leave the group; unreleased leases count as a dead reader's."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class BusClient(ABC):
    """A process's attachment to a bus that (usually) another process owns."""

    @abstractmethod
    def subscribe(self, group: str, member: str, spec: GroupSpec | None = None) -> BusSubscription:
        """Join `group`. `spec` creates a group that was not declared; it sees packets from now on.

        Raises:
            BusError: unknown group without `spec`, or a `spec` that contradicts the group; the bus is
                gone; no room for another member.
        """

    @abstractmethod
    def account(self) -> BusAccount:
        """The counters, readable from any attached process, also after the owner died."""

    @abstractmethod
    def name_of(self, name_id: int) -> str:
        """The interned name (hook or encoding) behind an id in a packet header.

        Raises:
            BusError: no such id.
        """

    def reap(self, pid: int) -> int:
        """Take back the claims of a process *confirmed dead* (by pidfd). Returns packets taken back.

        Calling it for a live process is a race: kill first, confirm, then reap.
        """
        del pid
        return 0

    def attach_producer(self, shard: int, source: int) -> AttachedProducer:
        """The one writer of `shard`, here; its packets carry `source` (the rank of this process).

        Only backends with `shares_producers` can.

        Raises:
            BusError: no such shard, it was taken before, or this backend's producers live with its owner.
        """
        raise BusError(
            f"{type(self).__name__} cannot take the producer of shard {shard} for rank {source}: its "
            "producers live in the owner's process; choose a backend that shares producers "
            "(bus.backend: cpp_spmc, numba_ring or mp_queue)"
        )

    @abstractmethod
    def retire(self, group: str) -> None:
        """Give up on a declared group whose workers will not come back.

        Once it has no members it ends as a late one does, so a dead archiver cannot fill the bus
        for everybody else. Someone who subscribes to it again revives it from then on.

        Raises:
            BusError: unknown group, or the owner is gone.
        """

    @abstractmethod
    def close(self) -> None:
        """Detach. Idempotent."""


class BaseDataBus(BusClient):
    """The bus as its owner (the host process) holds it."""

    def __init__(self) -> None:
        self._default_producer: BusProducer | None = None
        self._local_subscriptions: dict[str, BusSubscription] = {}

    @abstractmethod
    def producer(self, shard: int = 0) -> BusProducer:
        """The one writer of `shard`.

        Raises:
            BusError: no such shard, or its producer was already handed out.
        """

    @abstractmethod
    def intern(self, name: str) -> int:
        """The id of a hook or encoding name (id 0 is "identity"). Idempotent.

        Raises:
            BusError: the table is full or the name is longer than 200 bytes of UTF-8.
        """

    @abstractmethod
    def handle(self) -> BusHandle:
        """What another process needs to attach."""

    @abstractmethod
    def fill_ratio(self) -> float:
        """How full the fullest group (or the ring) is, 0..1. Cheap enough for every packet."""

    @abstractmethod
    def finish(self) -> None:
        """No more packets: consumers drain what is there and then see `ended`."""

    # The first documents' names for the simplest use: one producer, one consumer, one process.
    def push(self, meta: PacketMeta, payload: Payload) -> bool:
        """`try_push` on shard 0."""
        if self._default_producer is None:
            self._default_producer = self.producer(0)
        return self._default_producer.try_push(meta, payload)

    def pull_batch(
        self, group: str, max_packets: int = 64, timeout_s: float = 0.05, min_packets: int = 1
    ) -> Lease:
        """Claim from `group` as a member of this process; see `BusSubscription.pull_batch`."""
        subscription = self._local_subscriptions.get(group)
        if subscription is None:
            subscription = self.subscribe(group, "local")
            self._local_subscriptions[group] = subscription
        return subscription.pull_batch(max_packets, timeout_s, min_packets)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class BusOptions(BaseModel, extra="forbid", frozen=True):
    """Base of a backend's own option model (`bus.options.<backend>` in YAML)."""


@dataclass(frozen=True)
class BusRequest:
    """Everything a backend needs to build a bus; the same for every backend."""

    groups: tuple[GroupSpec, ...]
    shards: int = 1
    source: int = 0
    """Rank of this host; written in every packet."""
    capacity_packets: int = 4096
    """Packets a shard holds before it is full (backends may round up to a power of two)."""
    capacity_bytes: int = 64 << 20
    """Payload bytes a shard holds before it is full."""
    checksum: bool = False
    names: tuple[str, ...] = ()
    """Hook and encoding names to intern at start."""
    options: BusOptions = field(default_factory=BusOptions)


@dataclass(frozen=True)
class BusPlugin:
    """What `backends/<name>/plugin.py` exports as `plugin` (entry point group `asys.backend`)."""

    name: str
    summary: str
    capabilities: BusCapabilities
    options: type[BusOptions]
    build: Callable[[BusRequest], BaseDataBus]
    attach: Callable[[BusHandle], BusClient]
    unavailable: Callable[[], str | None] = lambda: None
    """A reason why it cannot run here (with the fix), or None."""
    metrics: Mapping[str, str] = field(default_factory=dict)
    """metric -> "lower" | "higher" is better; the unit is the name's suffix."""
