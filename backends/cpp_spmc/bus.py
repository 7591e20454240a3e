"""CppShardedSPMCBus: the ring client over the compiled segment.

The hot calls (`try_push`, `pull_batch`, a lease) are C++ methods put in place as instance attributes:
a Python frame around them would cost a tenth of the push.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch

from asys_bench.backends.cpp_spmc import native
from asys_bench.backends.cpp_spmc.hook_class import compiled
from asys_bench.backends.ring_client.client import (
    RingBus,
    RingClient,
    RingMember,
    RingSegment,
    SegmentRequest,
    ShardWriter,
)
from asys_bench.backends.ring_client.options import RingOptions
from asys_bench.contracts.bus import (
    BusError,
    DropReason,
    GroupAccount,
    Lease,
    Payload,
    Reservation,
)
from asys_bench.contracts.capture_port import CapturePort, HookT, PortCells
from asys_bench.contracts.packet import PacketMeta

if TYPE_CHECKING:
    from asys_bench.backends.cpp_spmc import _spmc as stub


class CppSpmcProducer(ShardWriter):
    """The writer of one shard."""

    def __init__(self, core: stub.Producer, shard: int) -> None:
        self.shard = shard
        self.core = core
        self.max_payload_bytes = core.max_payload_bytes
        # The class's methods below document and type them; these are what callers reach.
        self.try_push = core.try_push  # type: ignore[method-assign]
        self.try_push_many = core.try_push_many  # type: ignore[method-assign]
        self.try_push_frames = core.try_push_frames  # type: ignore[method-assign]
        self.reserve = core.reserve  # type: ignore[method-assign]
        self.fill_now = core.fill_ratio  # type: ignore[method-assign]

    def try_push(self, meta: PacketMeta, payload: Payload) -> bool:
        return self.core.try_push(meta, payload)

    def push(self, meta: PacketMeta, payload: Payload, timeout_s: float) -> bool:
        return self.core.push(meta, payload, timeout_s)

    def reserve(self, nbytes: int) -> Reservation | None:
        return self.core.reserve(nbytes)

    def try_push_many(self, meta: PacketMeta, payloads: npt.NDArray[Any] | torch.Tensor) -> int:
        return self.core.try_push_many(meta, payloads)

    def try_push_frames(
        self, meta: PacketMeta, data: memoryview, places: npt.NDArray[np.int64]
    ) -> int:
        return self.core.try_push_frames(meta, data, places)

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

    def fill_now(self) -> float | None:
        return self.core.fill_ratio()

    def is_pushing(self) -> bool:
        return self.core.pushing

    def refusal(self) -> DropReason | None:
        return self.core.last_refusal


class CppSpmcSubscription(RingMember):
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
        self.closed = True


class CppSegment(RingSegment):
    """A segment of the compiled module."""

    def __init__(self, core: stub.Segment) -> None:
        self._core = core
        self.shards = core.shards

    @classmethod
    def create(cls, request: SegmentRequest) -> Self:
        most = native.layout()["max_payload_bytes"]
        asked = {**asdict(request), "max_payload": min(request.max_payload, most)}
        return cls(native.create(**asked))

    @classmethod
    def attach_fd(cls, fd: int) -> Self:
        return cls(native.attach_fd(fd))

    @classmethod
    def attach_name(cls, name: str) -> Self:
        return cls(native.attach_name(name))

    @property
    def fd(self) -> int:
        return self._core.fd

    def intern(self, name: str) -> int:
        return self._core.intern(name)

    def name_of(self, name_id: int) -> str:
        if name_id < 0:
            raise BusError(f"no name with id {name_id}")
        with _names():
            return self._core.name_of(name_id)

    def name_count(self) -> int:
        return self._core.name_count()

    def group_names(self) -> list[str]:
        with _names():
            return self._core.group_names()

    def add_group(
        self, name: str, at_least_once: bool, temporary: bool, hooks: Sequence[int] | None
    ) -> bool:
        chosen = None if hooks is None else list(hooks)
        return self._core.add_group(name, at_least_once, temporary, chosen).at_least_once

    def subscribe(self, group: str, member: str, options: RingOptions) -> RingMember:
        core = self._core.subscribe(group, spin_us=options.spin_us, poll_us=options.poll_us)
        return CppSpmcSubscription(core, group, member)

    def writer(self, shard: int, options: RingOptions, source: int | None) -> ShardWriter:
        core = self._core.producer(
            shard,
            streaming_threshold=options.streaming_threshold_bytes,
            window=options.window_bytes,
            source=source,
        )
        return CppSpmcProducer(core, shard)

    def counts(self) -> tuple[int, int, Sequence[int], Sequence[GroupAccount]]:
        with _names():
            accepted, payload_bytes, dropped, groups = self._core.account()
        return accepted, payload_bytes, dropped, [GroupAccount(*group) for group in groups]

    def retire(self, group: str) -> None:
        self._core.retire(group)

    def reap(self, pid: int) -> int:
        return self._core.reap(pid)

    def refuse(self) -> None:
        self._core.refuse()

    def finish(self) -> None:
        self._core.finish()

    def unlink(self) -> None:
        self._core.unlink()


@contextmanager
def _names() -> Iterator[None]:
    """Raises BusError for a name in shared memory that is no UTF-8."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise BusError(
            f"a name in the segment is no UTF-8 ({error.object[:20]!r}): the segment is damaged"
        ) from None


class CppSpmcClient(RingClient):
    """Another process's attachment."""

    segment_type = CppSegment


class CppShardedSPMCBus(RingBus):
    """The bus as its owner holds it."""

    backend = "cpp_spmc"
    segment_type = CppSegment
