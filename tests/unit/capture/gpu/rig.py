"""A streamer over a simulated device and a producer that remembers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from asys_bench.capture.gpu.streamer import DeviceStreamer
from asys_bench.config.sections.bus import DeviceConfig
from asys_bench.contracts.bus import BusProducer, DropReason, Reservation
from asys_bench.contracts.packet import DTYPE_CODE, Kind, PacketMeta
from asys_bench.contracts.preprocessor import Encoded
from asys_bench.kernels.identity.kernel import IdentityPreprocessor

from .simulated_device import SimulatedDevice

CPU = torch.device("cpu")
SECOND = torch.device("cuda:1")


class OnSecondDevice(torch.Tensor):
    """A CPU tensor that says it lives on another device."""

    device = property(lambda self: SECOND)  # type: ignore[assignment]


class MemoryReservation(Reservation):
    def __init__(self, producer: MemoryProducer, nbytes: int) -> None:
        self._producer = producer
        self.view = memoryview(bytearray(nbytes))

    def commit(self, meta: PacketMeta, nbytes: int | None = None) -> bool:
        self._producer.reserved = False
        return self._producer.try_push(meta, self.view[:nbytes])

    def abort(self) -> None:
        self._producer.reserved = False


class MemoryProducer(BusProducer):
    """Keeps (meta, payload bytes). It insists on its lock, as a shard has one writer at a time."""

    shard = 0

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.packets: list[tuple[PacketMeta, bytes]] = []
        self.refuses = False
        self.raises: Exception | None = None
        self.before_push: Callable[[], None] = lambda: None
        self.reserved = False
        self.timeouts: list[float] = []

    def try_push(self, meta: PacketMeta, payload: Any) -> bool:
        assert self.lock.locked(), "pushed without the lock of the shard"
        assert not self.reserved, "pushed beside a reservation"
        self.before_push()
        if self.raises is not None:
            raise self.raises
        if self.refuses:
            return False
        if isinstance(payload, torch.Tensor):
            payload = payload.numpy()
        self.packets.append((meta, bytes(payload)))
        return True

    def push(self, meta: PacketMeta, payload: Any, timeout_s: float) -> bool:
        self.timeouts.append(timeout_s)
        return self.try_push(meta, payload)

    def reserve(self, nbytes: int) -> Reservation | None:
        assert self.lock.locked(), "reserved without the lock of the shard"
        assert not self.reserved, "a second reservation"
        if self.refuses:
            return None
        self.reserved = True
        return MemoryReservation(self, nbytes)

    @property
    def last_refusal(self) -> DropReason | None:
        return DropReason.FULL if self.refuses else None


def meta_builder(number: int) -> Callable[[Encoded], PacketMeta]:
    """The packet's number travels as the host step."""

    def build(encoded: Encoded) -> PacketMeta:
        return PacketMeta(
            0,
            Kind.ACTIVATION,
            DTYPE_CODE[encoded.dtype],
            tuple(encoded.shape),
            host_step=number,
            params=encoded.params,
        )

    return build


class Rig:
    """What most tests need; options as those of `DeviceStreamer`."""

    def __init__(
        self,
        *,
        device: SimulatedDevice | None = None,
        options: DeviceConfig | None = None,
        devices: tuple[torch.device, ...] = (CPU,),
        threaded: bool = False,
        **more: Any,
    ) -> None:
        self.device = device if device is not None else SimulatedDevice()
        self.producer = MemoryProducer()
        self.options = options or DeviceConfig(staging_mib=1, buffer_mib=1, max_in_flight=8)
        self.streamer = DeviceStreamer(
            self.device,
            self.producer,
            self.producer.lock,
            self.options,
            devices=devices,
            threaded=threaded,
            **more,
        )
        self.identity = IdentityPreprocessor("torch")
        self.device.automatic = threaded
        self.device.calls.clear()
        self.submitted = 0

    def submit(self, tensor: torch.Tensor, preprocessor: Any = None, **more: Any) -> Any:
        number = self.submitted
        self.submitted += 1
        more.setdefault("key", "hook")
        return self.streamer.submit(
            tensor, preprocessor or self.identity, meta_builder(number), **more
        )

    def settle_all(self) -> None:
        """Let the device finish, then commit what has arrived."""
        busy = True
        while busy:
            self.device.finish()
            busy = self.streamer.settle() or any(s.queue for s in self.device.streams.values())

    @property
    def numbers(self) -> list[int]:
        """Numbers of the packets on the bus, in their order."""
        return [meta.host_step for meta, _ in self.producer.packets]

    def payloads(self) -> list[bytes]:
        return [payload for _, payload in self.producer.packets]

    def waits(self) -> list[tuple[str, str | None, int]]:
        return [call for call in self.device.calls if call[0] == "synchronize"]


def bytes_of(tensor: torch.Tensor) -> bytes:
    """The elements in row-major order."""
    plain = tensor.detach().contiguous().as_subclass(torch.Tensor)
    return bytes(np.asarray(plain.view(-1).view(torch.uint8)))
