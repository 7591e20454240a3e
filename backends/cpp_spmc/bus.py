"""CppShardedSPMCBus: the contract of `contracts.bus` over the compiled ring.

The hot calls (`try_push`, `pull_batch`, a lease) are C++ methods put in place as instance attributes:
a Python frame around them would cost a tenth of the push.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import torch

from asys_bench.backends.cpp_spmc.config import CppSpmcOptions
from asys_bench.backends.cpp_spmc.hook_class import compiled
from asys_bench.backends.cpp_spmc.native import (
    REFUSALS,
    attach_fd,
    attach_name,
    create,
    layout,
)
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
    Lease,
    Payload,
    Reservation,
)
from asys_bench.contracts.capture_port import CapturePort, HookT, PortCells
from asys_bench.contracts.packet import HEADER_BYTES, PacketMeta

if TYPE_CHECKING:
    from asys_bench.backends.cpp_spmc import _spmc as stub

BACKEND = "cpp_spmc"
PASSED_ON = ("spin_us", "poll_us", "streaming_threshold_bytes", "window_bytes")
"""Options that a process that attaches needs, too."""
_PAGE = 4096


class CppSpmcProducer(BusProducer):
    """The writer of one shard."""

    def __init__(self, core: stub.Producer, shard: int) -> None:
        self.shard = shard
        self.core = core
        self.max_payload_bytes = core.max_payload_bytes
        # The class's methods below document and type them; these are what callers reach.
        self.try_push = core.try_push  # type: ignore[method-assign]
        self.try_push_many = core.try_push_many  # type: ignore[method-assign]
        self.reserve = core.reserve  # type: ignore[method-assign]

    def try_push(self, meta: PacketMeta, payload: Payload) -> bool:
        return self.core.try_push(meta, payload)

    def push(self, meta: PacketMeta, payload: Payload, timeout_s: float) -> bool:
        return self.core.push(meta, payload, timeout_s)

    def reserve(self, nbytes: int) -> Reservation | None:
        return self.core.reserve(nbytes)

    def try_push_many(self, meta: PacketMeta, payloads: npt.NDArray[Any] | torch.Tensor) -> int:
        return self.core.try_push_many(meta, payloads)

    def capture_port(self, meta: PacketMeta, cells: PortCells) -> CapturePort | None:
        return self.core.capture_port(
            meta,
            cells=cells.cells,
            calls=cells.calls,
            captured=cells.captured,
            dropped=cells.dropped,
            nbytes=cells.nbytes,
            latency=cells.latency,
        )

    def hook_class(self, hook: type[HookT]) -> type[HookT]:
        return compiled(hook)

    @property
    def last_refusal(self) -> DropReason | None:
        return self.core.last_refusal


class CppSpmcAttachedProducer(CppSpmcProducer, AttachedProducer):
    """The writer of one shard of a segment that another process owns."""

    def __init__(self, core: stub.Producer, shard: int) -> None:
        super().__init__(core, shard)
        self._closed = False
        self._fill = 0.0

    def fill_ratio(self) -> float:
        ratio = self.core.fill_ratio()
        if ratio is not None:  # else its thread is inside a push: the last answer is recent
            self._fill = ratio
        return self._fill

    def close(self) -> None:
        self._closed = True
        # What was accepted is published already; only later offers are turned away.
        self.try_push = self._refuse  # type: ignore[method-assign]
        self.try_push_many = self._refuse_many  # type: ignore[method-assign]
        self.reserve = self._refuse_room  # type: ignore[method-assign]

    def push(self, meta: PacketMeta, payload: Payload, timeout_s: float) -> bool:
        return False if self._closed else self.core.push(meta, payload, timeout_s)

    def capture_port(self, meta: PacketMeta, cells: PortCells) -> CapturePort | None:
        return None if self._closed else super().capture_port(meta, cells)

    @property
    def last_refusal(self) -> DropReason | None:
        return DropReason.CLOSED if self._closed else self.core.last_refusal

    def _refuse(self, meta: PacketMeta, payload: Payload) -> bool:
        return False

    def _refuse_many(self, meta: PacketMeta, payloads: npt.NDArray[Any] | torch.Tensor) -> int:
        return 0

    def _refuse_room(self, nbytes: int) -> Reservation | None:
        return None


class CppSpmcSubscription(BusSubscription):
    """One member of one group."""

    def __init__(self, core: stub.Consumer, group: str, member: str) -> None:
        self.group = group
        self.member = member
        self._core = core
        self.pull_batch = core.pull_batch  # type: ignore[method-assign]

    def pull_batch(
        self, max_packets: int = 64, timeout_s: float = 0.05, min_packets: int = 1
    ) -> Lease:
        return self._core.pull_batch(max_packets, timeout_s, min_packets)

    @property
    def ended(self) -> bool:
        return self._core.ended

    def close(self) -> None:
        self._core.close()


class _Attached:
    """What owner and client have in common: an open segment."""

    def __init__(self, segment: stub.Segment, options: CppSpmcOptions) -> None:
        self._options = options
        self.subscriptions: list[CppSpmcSubscription] = []
        self._segment: stub.Segment | None = segment
        self._pid = os.getpid()

    @property
    def segment(self) -> stub.Segment:
        if self._segment is None:
            raise BusError("the bus was closed")
        if os.getpid() != self._pid:
            raise BusError(
                "this bus was opened before a fork and belongs to the parent; attach by its handle"
            )
        return self._segment

    @property
    def is_open(self) -> bool:
        return self._segment is not None and os.getpid() == self._pid

    def add_group(self, spec: GroupSpec, temporary: bool) -> None:
        hooks: list[int] | None = None
        if spec.hooks is not None:
            ids = {self.segment.name_of(i): i for i in range(self.segment.name_count())}
            unknown = [name for name in spec.hooks if name not in ids]
            if unknown:
                raise BusError(
                    f"group {spec.name!r} selects hooks {unknown} that the bus has not interned; "
                    f"it knows {sorted(ids)}"
                )
            hooks = [ids[name] for name in spec.hooks]
        again = spec.delivery is Delivery.AT_LEAST_ONCE
        group = self.segment.add_group(spec.name, again, temporary, hooks)
        if group.at_least_once != again:
            raise BusError(
                f"group {spec.name!r} exists with the other delivery mode; join it without a spec"
            )

    def subscribe(self, group: str, member: str, spec: GroupSpec | None) -> CppSpmcSubscription:
        if self.segment.find_group(group) is None:
            if spec is None:
                raise BusError(
                    f"no group {group!r}; this bus has {self.segment.group_names()}. Pass a spec to "
                    "create it"
                )
            if spec.name != group:
                raise BusError(f"the spec is of group {spec.name!r}, not {group!r}")
            self.add_group(spec, temporary=True)
        core = self.segment.subscribe(
            group, spin_us=self._options.spin_us, poll_us=self._options.poll_us
        )
        subscription = CppSpmcSubscription(core, group, member)
        self.subscriptions.append(subscription)
        return subscription

    def account(self) -> BusAccount:
        try:
            accepted, payload_bytes, dropped, groups = self.segment.account()
        except UnicodeDecodeError as error:
            raise _damaged_name(error) from None
        return BusAccount(
            produced=accepted + sum(dropped),
            dropped={reason.value: count for reason, count in zip(REFUSALS, dropped, strict=True)},
            produced_bytes=payload_bytes,
            groups=tuple(GroupAccount(*group) for group in groups),
        )

    def close(self) -> None:
        for subscription in self.subscriptions:
            subscription.close()
        self.subscriptions.clear()
        self._segment = None


class CppSpmcClient(BusClient):
    """Another process's attachment: reads everything, writes only claims."""

    def __init__(self, segment: stub.Segment, options: CppSpmcOptions) -> None:
        self._options = options
        self._attached = _Attached(segment, options)

    @classmethod
    def attach(cls, handle: BusHandle) -> CppSpmcClient:
        """Map the segment behind `handle`, of this backend or one of the same layout.

        Raises:
            BusError: not a segment, damaged, of another version, or its processes are gone.
        """
        name = handle.params.get("name")
        if name is not None:
            segment = attach_name(str(name))
        elif len(handle.fds) == 1:
            segment = attach_fd(handle.fds[0])
        else:
            raise BusError(
                f"a {handle.backend} handle has a name or one file descriptor, this one has "
                f"{len(handle.fds)}; pass the descriptor with the handle (pass_fds)"
            )
        known = {name: handle.params[name] for name in PASSED_ON if name in handle.params}
        return cls(segment, CppSpmcOptions(**known))

    def subscribe(self, group: str, member: str, spec: GroupSpec | None = None) -> BusSubscription:
        return self._attached.subscribe(group, member, spec)

    def account(self) -> BusAccount:
        return self._attached.account()

    def name_of(self, name_id: int) -> str:
        return _name_of(self._attached.segment, name_id)

    def reap(self, pid: int) -> int:
        return self._attached.segment.reap(pid)

    def attach_producer(self, shard: int, source: int) -> AttachedProducer:
        _check_shard(self._attached.segment, shard)
        core = self._attached.segment.producer(
            shard,
            streaming_threshold=self._options.streaming_threshold_bytes,
            window=self._options.window_bytes,
            source=source,
        )
        return CppSpmcAttachedProducer(core, shard)

    def retire(self, group: str) -> None:
        self._attached.segment.retire(group)

    def close(self) -> None:
        if self._attached.is_open:
            self._attached.close()


class CppShardedSPMCBus(BaseDataBus):
    """The bus as its owner holds it. It exists until `close`, or until its last process is dead."""

    def __init__(self, request: BusRequest) -> None:
        super().__init__()
        options = request.options
        if not isinstance(options, CppSpmcOptions):
            options = CppSpmcOptions(**options.model_dump())
        self._options = options
        slots = 1 << max(0, request.capacity_packets - 1).bit_length()
        payload_bytes = -(-max(request.capacity_bytes, 64) // 64) * 64
        # Headers and padding do not count against the bytes that were asked for.
        arena_bytes = payload_bytes + slots * (HEADER_BYTES + 64)
        segment = create(
            shards=request.shards,
            slots=slots,
            arena_bytes=-(-arena_bytes // _PAGE) * _PAGE,
            max_payload=min(payload_bytes, layout()["max_payload_bytes"]),
            source=request.source,
            initial_seq=options.initial_seq,
            checksum=request.checksum,
            prefault=options.prefault,
            name=options.name or "",
        )
        self._attached = _Attached(segment, options)
        self._producers: dict[int, CppSpmcProducer] = {}
        self._fill: dict[int, float] = {}
        for name in ("identity", *request.names):
            segment.intern(name)
        for spec in request.groups:
            for hook in spec.hooks or ():
                segment.intern(hook)
            self._attached.add_group(spec, temporary=False)

    def producer(self, shard: int = 0) -> BusProducer:
        segment = self._attached.segment
        _check_shard(segment, shard)
        if shard in self._producers:
            raise BusError(
                f"the producer of shard {shard} was already handed out; one writes a shard"
            )
        core = segment.producer(
            shard,
            streaming_threshold=self._options.streaming_threshold_bytes,
            window=self._options.window_bytes,
        )
        self._producers[shard] = CppSpmcProducer(core, shard)
        return self._producers[shard]

    def intern(self, name: str) -> int:
        return self._attached.segment.intern(name)

    def handle(self) -> BusHandle:
        segment = self._attached.segment
        params: dict[str, Any] = {name: getattr(self._options, name) for name in PASSED_ON}
        if self._options.name is not None:
            return BusHandle(BACKEND, {**params, "name": self._options.name})
        return BusHandle(BACKEND, params, (segment.fd,))

    def fill_ratio(self) -> float:
        fullest = 0.0
        for shard, producer in self._producers.items():
            ratio = producer.core.fill_ratio()
            if ratio is None:  # its thread is inside a push: the last answer is microseconds old
                ratio = self._fill.get(shard, 0.0)
            self._fill[shard] = ratio
            fullest = max(fullest, ratio)
        return fullest

    def finish(self) -> None:
        segment = self._attached.segment
        segment.refuse()
        # A push that had begun copying still publishes: consumers must not see `ended` before it.
        while any(producer.core.pushing for producer in self._producers.values()):
            time.sleep(0.0001)
        segment.finish()

    def subscribe(self, group: str, member: str, spec: GroupSpec | None = None) -> BusSubscription:
        return self._attached.subscribe(group, member, spec)

    def account(self) -> BusAccount:
        return self._attached.account()

    def name_of(self, name_id: int) -> str:
        return _name_of(self._attached.segment, name_id)

    def reap(self, pid: int) -> int:
        return self._attached.segment.reap(pid)

    def retire(self, group: str) -> None:
        self._attached.segment.retire(group)

    def close(self) -> None:
        if not self._attached.is_open:
            return
        self.finish()
        self._attached.segment.unlink()
        self._local_subscriptions.clear()
        self._attached.close()


def _check_shard(segment: stub.Segment, shard: int) -> None:
    if not 0 <= shard < segment.shards:
        raise BusError(f"no shard {shard}; this bus has shards 0..{segment.shards - 1}")


def _name_of(segment: stub.Segment, name_id: int) -> str:
    if name_id < 0:
        raise BusError(f"no name with id {name_id}")
    try:
        return segment.name_of(name_id)
    except UnicodeDecodeError as error:
        raise _damaged_name(error) from None


def _damaged_name(error: UnicodeDecodeError) -> BusError:
    return BusError(
        f"a name in the segment is no UTF-8 ({error.object[:20]!r}): the segment is damaged"
    )
