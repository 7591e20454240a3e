"""NumbaRingBus: the contract of `contracts.bus` over the ring that numba compiles."""

from __future__ import annotations

import logging
import time
from typing import Any

from asys_bench.backends.numba_ring.attachment import Attachment
from asys_bench.backends.numba_ring.config import NumbaRingOptions
from asys_bench.backends.numba_ring.core import compiled
from asys_bench.backends.numba_ring.core.layout import MAX_PAYLOAD_BYTES, PAGE
from asys_bench.backends.numba_ring.header import SegmentRequest
from asys_bench.backends.numba_ring.producer import RingAttachedProducer, RingProducer
from asys_bench.backends.numba_ring.segment import Segment, attach_fd, attach_name, create
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
    GroupSpec,
)
from asys_bench.contracts.packet import HEADER_BYTES

BACKEND = "numba_ring"
PASSED_ON = ("spin_us", "poll_us", "streaming_threshold_bytes", "window_bytes")
"""Options that a process that attaches needs, too."""
_FINISH_POLL_S = 0.0001

logger = logging.getLogger(__name__)


class NumbaRingClient(BusClient):
    """Another process's attachment: reads everything, writes only claims."""

    def __init__(self, segment: Segment, options: NumbaRingOptions) -> None:
        self._options = options
        self._attachment = Attachment(segment, options.spin_us, options.poll_us)

    @classmethod
    def attach(cls, handle: BusHandle) -> NumbaRingClient:
        """Map the segment behind `handle`, made by this backend or by cpp_spmc.

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
        logger.info("numba_ring: %s", compiled.log)
        known = {name: handle.params[name] for name in PASSED_ON if name in handle.params}
        return cls(segment, NumbaRingOptions(**known))

    def subscribe(self, group: str, member: str, spec: GroupSpec | None = None) -> BusSubscription:
        return self._attachment.subscribe(group, member, spec)

    def account(self) -> BusAccount:
        return self._attachment.account()

    def name_of(self, name_id: int) -> str:
        return self._attachment.tables.name_of(name_id)

    def reap(self, pid: int) -> int:
        return self._attachment.tables.reap_pid(pid)

    def attach_producer(self, shard: int, source: int) -> AttachedProducer:
        return RingAttachedProducer(self._attachment.segment, shard, self._options, source)

    def retire(self, group: str) -> None:
        self._attachment.retire(group)

    def close(self) -> None:
        if self._attachment.is_open:
            self._attachment.close()


class NumbaRingBus(BaseDataBus):
    """The bus as its owner holds it. It exists until `close`, or until its last process is dead."""

    def __init__(self, request: BusRequest) -> None:
        super().__init__()
        options = request.options
        if not isinstance(options, NumbaRingOptions):
            options = NumbaRingOptions(**options.model_dump())
        self._options = options
        slots = 1 << max(0, request.capacity_packets - 1).bit_length()
        payload_bytes = -(-max(request.capacity_bytes, 64) // 64) * 64
        # Headers and padding do not count against the bytes that were asked for.
        arena_bytes = payload_bytes + slots * (HEADER_BYTES + 64)
        segment = create(
            SegmentRequest(
                shards=request.shards,
                slots=slots,
                arena_bytes=-(-arena_bytes // PAGE) * PAGE,
                max_payload=min(payload_bytes, MAX_PAYLOAD_BYTES),
                source=request.source,
                initial_seq=options.initial_seq,
                checksum=request.checksum,
                prefault=options.prefault,
                name=options.name or "",
            )
        )
        logger.info("numba_ring: %s", compiled.log)
        self._attachment = Attachment(segment, options.spin_us, options.poll_us)
        self._producers: dict[int, RingProducer] = {}
        self._fill: dict[int, float] = {}
        for name in ("identity", *request.names):
            self._attachment.tables.intern(name)
        for spec in request.groups:
            for hook in spec.hooks or ():
                self._attachment.tables.intern(hook)
            self._attachment.add_group(spec, temporary=False)

    def producer(self, shard: int = 0) -> BusProducer:
        self._producers[shard] = RingProducer(self._attachment.segment, shard, self._options)
        return self._producers[shard]

    def intern(self, name: str) -> int:
        return self._attachment.tables.intern(name)

    def handle(self) -> BusHandle:
        segment = self._attachment.segment
        params: dict[str, Any] = {name: getattr(self._options, name) for name in PASSED_ON}
        if self._options.name is not None:
            return BusHandle(BACKEND, {**params, "name": self._options.name})
        return BusHandle(BACKEND, params, (segment.fd,))

    def fill_ratio(self) -> float:
        for shard, producer in self._producers.items():
            ratio = producer.fill_ratio()
            if ratio is not None:  # else its thread is inside a push: the last answer is recent
                self._fill[shard] = ratio
        return max(self._fill.values(), default=0.0)

    def finish(self) -> None:
        segment = self._attachment.segment
        segment.refuse()
        # A push that had begun copying still publishes: consumers must not see `ended` before it.
        while any(producer.pushing for producer in self._producers.values()):
            time.sleep(_FINISH_POLL_S)
        segment.finish()

    def subscribe(self, group: str, member: str, spec: GroupSpec | None = None) -> BusSubscription:
        return self._attachment.subscribe(group, member, spec)

    def account(self) -> BusAccount:
        return self._attachment.account()

    def name_of(self, name_id: int) -> str:
        return self._attachment.tables.name_of(name_id)

    def reap(self, pid: int) -> int:
        return self._attachment.tables.reap_pid(pid)

    def retire(self, group: str) -> None:
        self._attachment.retire(group)

    def close(self) -> None:
        if not self._attachment.is_open:
            return
        self.finish()
        self._attachment.segment.unlink()
        self._local_subscriptions.clear()
        self._attachment.close()
