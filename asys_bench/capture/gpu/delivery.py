"""From staging memory onto the bus: the only part of the device path that touches the producer."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from asys_bench.capture.gpu.in_flight import InFlight
from asys_bench.contracts.bus import BusProducer
from asys_bench.contracts.packet import PacketMeta, tensor_bytes, tensor_view


class Delivery:
    """Pushes packets that have arrived.

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
        tensor = tensor_view(tensor_bytes(packet.target), plan.dtype, plan.shape)
        size = kernel.encoded_bytes(tensor)
        if packet.timeout_s > 0:  # a reservation cannot wait for room
            scratch = torch.empty(size, dtype=torch.uint8)
            encoded = kernel.encode(tensor, tensor_bytes(scratch))
            meta = packet.make_meta(encoded)
            return self._push(meta, scratch[: encoded.nbytes], packet.timeout_s)
        slot = self._producer.reserve(size)
        if slot is None:
            return None
        try:
            encoded = kernel.encode(tensor, slot.view)
            meta = packet.make_meta(encoded)
        except BaseException:
            slot.abort()
            raise
        return encoded.nbytes if slot.commit(meta, encoded.nbytes) else None
