"""The commit thread: sleeps until a packet has arrived, puts it on the bus, frees its memory."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import AbstractContextManager

import torch

from asys_bench.capture.gpu.flight_queue import FlightQueue
from asys_bench.capture.gpu.in_flight import InFlight
from asys_bench.capture.gpu.outcome import DeviceDrop, describe
from asys_bench.capture.gpu.runtime import DeviceRuntime, copy_bytes
from asys_bench.contracts.bus import BusProducer
from asys_bench.contracts.packet import PacketMeta, tensor_bytes, tensor_view
from asys_bench.contracts.preprocessor import Encoded, Preprocessor

log = logging.getLogger(__name__)


class Delivery:
    """Pushes packets that have arrived in staging memory: the only user of the producer.

    bus_lock: whoever else writes to this producer holds it while doing so; a shard has one writer.
    """

    def __init__(self, producer: BusProducer, bus_lock: AbstractContextManager[object]) -> None:
        self._producer = producer
        self._bus_lock = bus_lock

    def deliver(self, packet: InFlight) -> int | None:
        """Payload bytes on the bus, or None: the bus refused it.

        Raises whatever the preprocessor, the meta builder or the bus raises.
        """
        with self._bus_lock:
            if packet.meta is None:
                return self._encode(packet)
            return self._push(packet.meta, packet.target, packet.timeout_s)

    def _push(self, meta: PacketMeta, payload: torch.Tensor, timeout_s: float) -> int | None:
        if timeout_s > 0:
            accepted = self._producer.push(meta, payload, timeout_s)
        else:
            accepted = self._producer.try_push(meta, payload)
        return payload.numel() if accepted else None

    def _encode(self, packet: InFlight) -> int | None:
        """The preprocessor reads staging memory and writes into the bus's: no copy in between."""
        plan, kernel = packet.plan.encoded, packet.route.preprocessor
        captured = tensor_bytes(packet.target)
        tensor = tensor_view(captured, plan.dtype, plan.shape)
        behind = captured[plan.nbytes :]  # `contracts.encodings.padding`
        size = kernel.encoded_bytes(tensor) + len(behind)
        if packet.timeout_s > 0:  # a reservation cannot wait for room
            scratch = torch.empty(size, dtype=torch.uint8)
            encoded, nbytes = _encode_with(kernel, tensor, behind, tensor_bytes(scratch))
            meta = packet.make_meta(encoded)
            return self._push(meta, scratch[:nbytes], packet.timeout_s)
        slot = self._producer.reserve(size)
        if slot is None:
            return None
        try:
            encoded, nbytes = _encode_with(kernel, tensor, behind, slot.view)
            meta = packet.make_meta(encoded)
        except BaseException:
            slot.abort()
            raise
        return nbytes if slot.commit(meta, nbytes) else None


def _encode_with(
    kernel: Preprocessor, tensor: torch.Tensor, behind: memoryview, out: memoryview
) -> tuple[Encoded, int]:
    """Write the payload and `behind` after it; the bytes of both."""
    encoded = kernel.encode(tensor, out)
    nbytes = encoded.nbytes + len(behind)
    out[encoded.nbytes : nbytes] = behind
    return encoded, nbytes


class Committer:
    """Takes packets from the head of `queue`, one at a time, so their order is kept.

    It is the only one that settles. It never holds the queue's lock while it waits for the device or
    for the bus, so a hook never waits for either.
    """

    def __init__(self, runtime: DeviceRuntime, queue: FlightQueue, delivery: Delivery) -> None:
        self._runtime = runtime
        self._queue = queue
        self._delivery = delivery
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._loop, name="asys-device-commit", daemon=True)
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """Whether the thread has ended; it does once the queue refuses packets and is empty."""
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def drain(self, timeout_s: float) -> int:
        """Wait until nothing is in flight; returns the packets that still are."""
        deadline = time.monotonic() + timeout_s
        while self._thread is None and self.settle(wait=False):
            pass
        with self._queue.changed:
            while len(self._queue) and self._thread is not None:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    break
                self._queue.changed.wait(remaining)
            return len(self._queue)

    def settle(self, wait: bool) -> bool:
        """Settle the head if it has arrived (`wait`: when it has). False: nothing was settled."""
        with self._queue.changed:
            packet = self._queue.head()
        if packet is None:
            return False
        try:
            if not self._arrived(packet, wait):
                return False
        except Exception as error:  # noqa: BLE001 - the device is broken; the host must not hear of it from us
            self.switch_off(error)
            return False
        with self._queue.changed:
            if not self._queue.claim(packet):
                return False
        drop, nbytes, problem = self._deliver(packet)
        with self._queue.changed:
            self._queue.settle(drop, nbytes, problem)
        return True

    def _arrived(self, packet: InFlight, wait: bool) -> bool:
        if not packet.copy_issued:
            # Pageable memory: the driver makes the issuing thread wait, so it is this one.
            self._runtime.run(packet.side.stream, copy_bytes, packet.arriving, packet.source)
            packet.event.record(packet.side.stream)
            packet.copy_issued = True
        if wait:
            packet.event.synchronize()
        return packet.event.query()

    def _deliver(self, packet: InFlight) -> tuple[DeviceDrop | None, int, str | None]:
        if packet.broken:
            return None, 0, None
        try:
            nbytes = self._delivery.deliver(packet)
        except Exception as error:  # noqa: BLE001 - fail-open; the hook learns of it through `collect`
            return DeviceDrop.DELIVERY_FAILED, 0, describe(error)
        return (DeviceDrop.BUS_REFUSED, 0, None) if nbytes is None else (None, nbytes, None)

    def switch_off(self, error: Exception) -> None:
        """The device is broken: drop everything, refuse everything, say so once."""
        with self._queue.changed:
            first = self._queue.refusal is not DeviceDrop.DEVICE_FAILED
            self._queue.abandon(DeviceDrop.DEVICE_FAILED, describe(error))
        if first:
            log.warning(
                "tensors on devices are not observed any more after %s (the host goes on)",
                describe(error),
            )

    def _loop(self) -> None:
        try:
            self._runtime.enter_commit_thread()
            while self._wait_for_packet():
                self.settle(wait=True)
        except Exception as error:  # noqa: BLE001 - a thread that dies silently would look like a hang
            self.switch_off(error)

    def _wait_for_packet(self) -> bool:
        """False: nothing is left and nothing will come."""
        with self._queue.changed:
            while not len(self._queue):
                if self._queue.refusal is not None:
                    return False
                self._queue.changed.wait()
            return True
