"""DeviceStreamer: what a hook calls with a tensor that lives on a GPU.

PROTOCOL, per packet
  1. The hook's thread takes room in staging memory and in the device's buffer; no room: drop.
  2. The encoder is issued to the host's own stream and writes into the device's buffer.
  3. The side stream waits, on the device, for a mark in the host's stream. The copy into staging
     memory is issued to the side stream, then an event. `submit` returns; nothing was waited for.
  4. The commit thread sleeps until the event, pushes the payload to the bus and frees its memory.

WHY STAGING MEMORY, and not the bus's own: a bus's producer holds one reservation at a time, and
while it does nobody may write to the shard. A copy straight into a reservation would hold the
shard's lock for as long as the device takes, with the hooks of CPU tensors waiting behind it; and
when a device dies or a drain times out, a slot would be given back that the device may still write
to. Here the device only ever writes to memory of ours that nobody else uses. The price is one copy
between host buffers per packet, on the commit thread.

INVARIANTS
  I1 `submit` waits for no stream and no event. The commit thread (and the set-up) waits for events.
  I2 The host's tensor is read on the host's stream only, and never referenced.
  I3 Memory is used again only after the event of its packet; after a device error never again.
  I4 Packets reach the bus in the order of their submission.
  I5 submitted = committed + dropped (by reason) + in flight, at every quiet moment.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager

import torch

from asys_bench.capture.gpu.committer import Committer, Delivery
from asys_bench.capture.gpu.flight_queue import FlightQueue
from asys_bench.capture.gpu.in_flight import InFlight, MetaBuilder, hand_over, issue
from asys_bench.capture.gpu.outcome import DeviceAccount, DeviceDrop, Settled, describe
from asys_bench.capture.gpu.pinned_region import (
    PinnedRegion,
    measure_bandwidth,
    warn_unpinned,
)
from asys_bench.capture.gpu.route import (
    ENCODERS,
    Route,
    compile_problem,
    route_of,
    route_over_host,
)
from asys_bench.capture.gpu.runtime import DeviceRuntime
from asys_bench.capture.gpu.side_stream import SideStream
from asys_bench.config.sections.bus import DeviceConfig
from asys_bench.contracts.bus import BusProducer
from asys_bench.contracts.encodings.padding import beside_bytes
from asys_bench.contracts.preprocessor import Preprocessor
from asys_bench.contracts.stats import Slot
from asys_bench.registry import Registry

PREPARED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_abandoned: list[PinnedRegion] = []
"""Staging memory that a device may still write to: it must stay mapped while the process lives."""


class DeviceStreamer:
    """One per producer. `submit` may be called from any thread, but never with `bus_lock` held.

    producer, bus_lock: where packets go, and the lock that every writer of that shard holds.
    devices: those to be ready for, at least one; one that appears later is prepared by its first
        packet, which then takes milliseconds.
    slot: of the stats page, for the metrics (see `counters`).
    threaded: False leaves the committing to calls of `settle` (tests).

    Raises:
        RuntimeError: no memory is left on a device (torch.OutOfMemoryError), or it is broken.
    """

    def __init__(
        self,
        runtime: DeviceRuntime,
        producer: BusProducer,
        bus_lock: AbstractContextManager[object],
        options: DeviceConfig | None = None,
        *,
        devices: Sequence[torch.device],
        slot: Slot | None = None,
        encoders: Registry = ENCODERS,
        threaded: bool = True,
    ) -> None:
        if not devices:
            raise ValueError("a DeviceStreamer needs the devices that it serves, got none")
        self._runtime = runtime
        self._options = options if options is not None else DeviceConfig()
        self._encoders = encoders
        self._routes: dict[Preprocessor, Route] = {}
        self._closed = False
        # The devices first: registering memory needs a context.
        self._sides = {
            device: SideStream(runtime, device, self._options.buffer_bytes) for device in devices
        }
        self._region = PinnedRegion(runtime, self._options.staging_bytes)
        self._queue = FlightQueue(self._region.bytes, self._options.max_in_flight, slot)
        self._committer = Committer(runtime, self._queue, Delivery(producer, bus_lock))
        for side in self._sides.values():
            self._measure(side)
        if threaded:
            self._committer.start()

    def prepare(
        self, preprocessor: Preprocessor, dtypes: Sequence[torch.dtype] = PREPARED_DTYPES
    ) -> None:
        """Choose the encoder of `preprocessor` and compile it for tensors of `dtypes`.

        It takes seconds where the compiler's cache is cold, so call it before hooks are attached: a
        first packet of another dtype (or of rows that are not 16-byte aligned) compiles in the hook.
        What cannot be compiled (Triton builds its launchers with a C compiler) is encoded on the host.

        Raises:
            torch.OutOfMemoryError, torch.AcceleratorError: what the device itself raises.
        """
        route = self._route(preprocessor)
        try:
            for side in self._sides.values():
                self._runtime.run(side.stream, route.warm_up, side.device, dtypes)
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever a compiler raises, the host encodes the same bytes
            self._routes[preprocessor] = route_over_host(preprocessor, compile_problem(error))

    def submit(
        self,
        tensor: torch.Tensor,
        preprocessor: Preprocessor,
        make_meta: MetaBuilder,
        *,
        key: Hashable,
        timeout_s: float = 0.0,
        real: torch.Tensor | None = None,
    ) -> DeviceDrop | None:
        """Take `tensor` as the host's stream has it at this point; returns without waiting.

        make_meta: see `MetaBuilder`. key: the hook, as the log shall name it and `collect` return it.
        real: which rows are tokens, bool[rows] in any shape; the packet's encoding is then `padded+...`.
        timeout_s: > 0 waits that long for room here and again on the bus (`on_full: block`).

        Returns None when it is on its way, or why it was dropped at once (`collect` has that too).

        Raises:
            PacketError: the encoding cannot carry this tensor; nothing was counted.
            Exception: what issuing the work to the device raised, counted as LAUNCH_FAILED; the
                path goes on without this packet.
        """
        tensor = tensor.detach()
        route = self._route(preprocessor)
        queue = self._queue
        with queue.changed:
            plan = route.plan(tensor)
            meta = None if route.encode_on_host else make_meta(plan.encoded)
            capturing = self._runtime.capturing(tensor.device)
            side = None if capturing else self._side(tensor.device)
            queue.counters.submitted()
            if side is None:
                queue.counters.dropped(key, DeviceDrop.GRAPH_CAPTURE)
                return DeviceDrop.GRAPH_CAPTURE
            nbytes = plan.encoded.nbytes
            if real is not None:
                nbytes += beside_bytes(real.numel())
            ticket = queue.admit(side, nbytes, timeout_s)
            if isinstance(ticket, DeviceDrop):
                queue.counters.dropped(key, ticket)
                return ticket
            packet = InFlight(
                key=key,
                side=side,
                route=route,
                plan=plan,
                make_meta=make_meta,
                meta=meta,
                ticket=ticket,
                event=side.take_event(),
                target=queue.memory_of(ticket, nbytes),
                timeout_s=timeout_s,
                submitted_ns=time.perf_counter_ns(),
                real=real,
            )
            try:
                issue(self._runtime, packet, tensor, copy_now=self._region.pinned)
            except BaseException as error:
                self._queue_broken(packet, error)
                raise
            queue.append(packet)
        return None

    def collect(self) -> list[Settled]:
        """What became of packets since the last call, summed per key and outcome."""
        with self._queue.changed:
            return self._queue.counters.collect()

    def account(self) -> DeviceAccount:
        with self._queue.changed:
            return self._queue.account()

    @property
    def fill_ratio(self) -> float:
        """How full the path is, 0..1: for backpressure, beside the bus's own fill ratio."""
        with self._queue.changed:
            return self._queue.fill_ratio()

    @property
    def pinned(self) -> bool:
        """Whether the device copies at full speed; otherwise the log has said why not."""
        return self._region.pinned

    def settle(self) -> bool:
        """Commit the oldest packet if it has arrived. Only without a thread of our own (tests)."""
        return self._committer.settle(wait=False)

    def drain(self, timeout_s: float) -> int:
        """Wait until nothing is in flight, at most `timeout_s`; returns the packets that still are."""
        return self._committer.drain(timeout_s)

    def close(self, timeout_s: float = 5.0) -> int:
        """Refuse new packets, drain, stop. Idempotent. Returns how many packets did not make it.

        Those are counted as dropped (CLOSED). Their memory stays mapped, because the device may
        still write to it.
        """
        queue = self._queue
        with queue.changed:
            if self._closed:
                return 0
            self._closed = True
            if queue.refusal is None:
                queue.refusal = DeviceDrop.CLOSED
            queue.changed.notify_all()
        self._committer.drain(timeout_s)
        with queue.changed:
            safe = queue.refusal is DeviceDrop.CLOSED
            left = queue.abandon(DeviceDrop.CLOSED, f"not through after {timeout_s:g} s")
        if self._committer.join(timeout_s) and safe and not left:
            self._region.close()
        else:
            _abandoned.append(self._region)
        return left

    def _route(self, preprocessor: Preprocessor) -> Route:
        route = self._routes.get(preprocessor)
        if route is None:
            route = self._routes[preprocessor] = route_of(preprocessor, self._encoders)
        return route

    def _side(self, device: torch.device) -> SideStream:
        side = self._sides.get(device)
        if side is None:
            side = SideStream(self._runtime, device, self._options.buffer_bytes)
            self._sides[device] = side
        return side

    def _measure(self, side: SideStream) -> None:
        """Before anything is in flight: staging memory is written to."""
        measured = measure_bandwidth(self._runtime, side.stream, side.buffer, self._region)
        self._queue.counters.bandwidth(str(side.device), measured, self._region.pinned)
        if not self._region.pinned:
            warn_unpinned(self._region, measured, self._runtime.name(side.device))

    def _queue_broken(self, packet: InFlight, error: BaseException) -> None:
        """Issuing raised half-way: its memory is free again when the side stream gets there."""
        packet.broken = packet.copy_issued = True
        self._queue.counters.dropped(packet.key, DeviceDrop.LAUNCH_FAILED, describe(error))
        try:
            hand_over(self._runtime, packet.side)
            packet.event.record(packet.side.stream)
        except Exception as dead:  # noqa: BLE001 - the caller shall see the first error, not this one
            self._committer.switch_off(dead)
        else:
            self._queue.append(packet)
