"""A ring as its owner holds it (`RingBus`) and as other processes do (`RingClient`)."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from asys_bench.backends.ring_client import forks
from asys_bench.backends.ring_client.options import PASSED_ON, RingOptions
from asys_bench.contracts.bus import (
    AttachedProducer,
    BaseDataBus,
    BusAccount,
    BusClient,
    BusError,
    BusHandle,
    BusProducer,
    BusRequest,
    BusSubscription,
    Delivery,
    DropReason,
    GroupAccount,
    GroupSpec,
)
from asys_bench.contracts.packet import HEADER_BYTES

REFUSALS = tuple(DropReason)
"""In the order of a segment's drop counters."""
_PAGE = 4096
_FINISH_POLL_S = 0.0001


@dataclass(frozen=True)
class SegmentRequest:
    """What the owner asks for. An empty name: anonymous, passed on by file descriptor."""

    shards: int
    slots: int
    arena_bytes: int
    max_payload: int
    source: int = 0
    initial_seq: int = 0
    checksum: bool = False
    name: str = ""


class ShardWriter(AttachedProducer):
    """The writer of one shard, in the owner's process or in another."""

    _closed = False
    _fill = 0.0

    @abstractmethod
    def fill_now(self) -> float | None:
        """0 (empty) .. 1 (slots or arena used up); None while a push is under way in another thread."""

    @abstractmethod
    def is_pushing(self) -> bool:
        """Whether a call that copies is under way."""

    @abstractmethod
    def refusal(self) -> DropReason | None:
        """Why the last offer that reached the ring was refused."""

    def fill_ratio(self) -> float:
        ratio = self.fill_now()
        if ratio is None:  # its thread is inside a push: the last answer is microseconds old
            return self._fill
        self._fill = ratio
        return ratio

    @property
    def last_refusal(self) -> DropReason | None:
        return DropReason.CLOSED if self._closed else self.refusal()

    def close(self) -> None:
        self._closed = True
        # What was accepted is published already; only later offers are turned away.
        vars(self).update(
            try_push=lambda meta, payload: False,
            push=lambda meta, payload, timeout_s: False,
            try_push_many=lambda meta, payloads: 0,
            try_push_frames=lambda meta, data, places: 0,
            reserve=lambda nbytes: None,
            capture_port=lambda meta, cells: None,
        )


class RingMember(BusSubscription):
    """One member of one group."""

    closed = False


class RingSegment(ABC):
    """An open segment of one backend. Errors are `BusError`."""

    shards: int

    @classmethod
    @abstractmethod
    def create(cls, request: SegmentRequest) -> Self:
        """A new one. The largest payload is cut to what the layout can hold."""

    @classmethod
    @abstractmethod
    def attach_fd(cls, fd: int) -> Self:
        """The anonymous one behind a file descriptor, which stays the caller's."""

    @classmethod
    @abstractmethod
    def attach_name(cls, name: str) -> Self:
        """The one published under `name`."""

    @property
    @abstractmethod
    def fd(self) -> int:
        """For passing on."""

    @abstractmethod
    def intern(self, name: str) -> int: ...

    @abstractmethod
    def name_of(self, name_id: int) -> str: ...

    @abstractmethod
    def name_count(self) -> int: ...

    @abstractmethod
    def group_names(self) -> list[str]: ...

    @abstractmethod
    def add_group(
        self, name: str, at_least_once: bool, temporary: bool, hooks: Sequence[int] | None
    ) -> bool:
        """Find or make; whether the group is at_least_once."""

    @abstractmethod
    def subscribe(self, group: str, member: str, options: RingOptions) -> RingMember:
        """A member of a group that is there."""

    @abstractmethod
    def writer(self, shard: int, options: RingOptions, source: int | None) -> ShardWriter:
        """Take a shard, once. source: the rank in its packets; None: the owner's."""

    @abstractmethod
    def counts(self) -> tuple[int, int, Sequence[int], Sequence[GroupAccount]]:
        """Packets accepted, their payload bytes, drops in the order of `REFUSALS`, the groups."""

    @abstractmethod
    def retire(self, group: str) -> None: ...

    @abstractmethod
    def reap(self, pid: int) -> int: ...

    @abstractmethod
    def refuse(self) -> None:
        """Refuse pushes from now on; one that began may still publish."""

    @abstractmethod
    def finish(self) -> None:
        """Nothing will be published any more."""

    @abstractmethod
    def unlink(self) -> None:
        """Remove the name of a named segment; the memory lives until the last process lets go."""


class _OpenRing(BusClient):
    """What owner and client have in common."""

    def __init__(self, segment: RingSegment, options: RingOptions) -> None:
        self._options = options
        self._open: RingSegment | None = segment
        self._generation = forks.generation
        self._subscriptions: list[RingMember] = []

    @property
    def _segment(self) -> RingSegment:
        """The segment; BusError when it was closed or belongs to the parent process."""
        if self._open is None:
            raise BusError("the bus was closed")
        if self._generation != forks.generation:
            raise forks.refuse()
        return self._open

    @property
    def _is_open(self) -> bool:
        return self._open is not None and self._generation == forks.generation

    def _add_group(self, spec: GroupSpec, *, temporary: bool) -> None:
        segment = self._segment
        hooks = None
        if spec.hooks is not None:
            ids = {segment.name_of(i): i for i in range(segment.name_count())}
            unknown = [name for name in spec.hooks if name not in ids]
            if unknown:
                raise BusError(
                    f"group {spec.name!r} selects hooks {unknown} that the bus has not interned; "
                    f"it knows {sorted(ids)}"
                )
            hooks = [ids[name] for name in spec.hooks]
        again = spec.delivery is Delivery.AT_LEAST_ONCE
        if segment.add_group(spec.name, again, temporary, hooks) != again:
            raise BusError(
                f"group {spec.name!r} exists with the other delivery mode; join it without a spec"
            )

    def _checked(self, shard: int) -> int:
        shards = self._segment.shards
        if not 0 <= shard < shards:
            raise BusError(f"no shard {shard}; this bus has shards 0..{shards - 1}")
        return shard

    def subscribe(self, group: str, member: str, spec: GroupSpec | None = None) -> BusSubscription:
        known = self._segment.group_names()
        if group not in known:
            if spec is None:
                raise BusError(
                    f"no group {group!r}; this bus has {known}. Pass a spec to create it"
                )
            if spec.name != group:
                raise BusError(f"the spec is of group {spec.name!r}, not {group!r}")
            self._add_group(spec, temporary=True)
        subscription = self._segment.subscribe(group, member, self._options)
        self._subscriptions = [one for one in self._subscriptions if not one.closed]
        self._subscriptions.append(subscription)
        return subscription

    def account(self) -> BusAccount:
        accepted, payload_bytes, dropped, groups = self._segment.counts()
        return BusAccount(
            produced=accepted + sum(dropped),
            dropped={reason.value: count for reason, count in zip(REFUSALS, dropped, strict=True)},
            produced_bytes=payload_bytes,
            groups=tuple(groups),
        )

    def name_of(self, name_id: int) -> str:
        return self._segment.name_of(name_id)

    def reap(self, pid: int) -> int:
        return self._segment.reap(pid)

    def retire(self, group: str) -> None:
        self._segment.retire(group)

    def close(self) -> None:
        if self._is_open:
            for subscription in self._subscriptions:
                subscription.close()
            self._subscriptions.clear()
            self._open = None


class RingClient(_OpenRing):
    """Another process's attachment: reads everything, writes only claims."""

    segment_type: ClassVar[type[RingSegment]]

    @classmethod
    def attach(cls, handle: BusHandle) -> Self:
        """Map the segment behind `handle`, made by this backend or by another of the same layout.

        Raises:
            BusError: not a segment, damaged, of another version, or its processes are gone.
        """
        name = handle.params.get("name")
        if name is not None:
            segment = cls.segment_type.attach_name(str(name))
        elif len(handle.fds) == 1:
            segment = cls.segment_type.attach_fd(handle.fds[0])
        else:
            raise BusError(
                f"a {handle.backend} handle has a name or one file descriptor, this one has "
                f"{len(handle.fds)}; pass the descriptor with the handle (pass_fds)"
            )
        known = {name: handle.params[name] for name in PASSED_ON if name in handle.params}
        return cls(segment, RingOptions(**known))

    def attach_producer(self, shard: int, source: int) -> AttachedProducer:
        return self._segment.writer(self._checked(shard), self._options, source)


class RingBus(_OpenRing, BaseDataBus):
    """The bus as its owner holds it. It exists until `close`, or until its last process is dead."""

    backend: ClassVar[str]
    segment_type: ClassVar[type[RingSegment]]

    def __init__(self, request: BusRequest) -> None:
        BaseDataBus.__init__(self)
        options = request.options
        if not isinstance(options, RingOptions):
            options = RingOptions(**options.model_dump())
        slots = 1 << max(0, request.capacity_packets - 1).bit_length()
        payload_bytes = -(-max(request.capacity_bytes, 64) // 64) * 64
        # Headers and padding do not count against the bytes that were asked for.
        arena_bytes = payload_bytes + slots * (HEADER_BYTES + 64)
        segment = self.segment_type.create(
            SegmentRequest(
                shards=request.shards,
                slots=slots,
                arena_bytes=-(-arena_bytes // _PAGE) * _PAGE,
                max_payload=payload_bytes,
                source=request.source,
                initial_seq=options.initial_seq,
                checksum=request.checksum,
                name=options.name or "",
            )
        )
        super().__init__(segment, options)
        self._writers: list[ShardWriter] = []
        for name in ("identity", *request.names):
            segment.intern(name)
        for spec in request.groups:
            for hook in spec.hooks or ():
                segment.intern(hook)
            self._add_group(spec, temporary=False)

    def producer(self, shard: int = 0) -> BusProducer:
        writer = self._segment.writer(self._checked(shard), self._options, None)
        self._writers.append(writer)
        return writer

    def intern(self, name: str) -> int:
        return self._segment.intern(name)

    def handle(self) -> BusHandle:
        params = {name: getattr(self._options, name) for name in PASSED_ON}
        if self._options.name is not None:
            return BusHandle(self.backend, {**params, "name": self._options.name})
        return BusHandle(self.backend, params, (self._segment.fd,))

    def fill_ratio(self) -> float:
        fullest = 0.0
        for writer in self._writers:
            fullest = max(fullest, writer.fill_ratio())
        return fullest

    def finish(self) -> None:
        segment = self._segment
        segment.refuse()
        # A push that had begun copying still publishes: consumers must not see `ended` before it.
        while any(writer.is_pushing() for writer in self._writers):
            time.sleep(_FINISH_POLL_S)
        segment.finish()

    def close(self) -> None:
        if not self._is_open:
            return
        self.finish()
        self._segment.unlink()
        self._local_subscriptions.clear()
        super().close()
