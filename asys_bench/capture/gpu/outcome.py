"""What became of the packets that were handed to the device path. Every one has one outcome."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import StrEnum


class DeviceDrop(StrEnum):
    """Why a packet did not reach the bus. Drops are outcomes, not exceptions."""

    IN_FLIGHT_FULL = "in_flight_full"
    """Staging memory, the device's buffer or `max_in_flight` was used up."""
    TOO_LARGE = "too_large"
    """It can never fit into staging memory or the device's buffer."""
    GRAPH_CAPTURE = "graph_capture"
    """The host is capturing a CUDA graph: anything issued now would become part of it."""
    BUS_REFUSED = "bus_refused"
    """The bus had no room (the bus counted it too, under its own reason)."""
    DELIVERY_FAILED = "delivery_failed"
    """Encoding on the host or pushing raised; `Settled.error` says what."""
    LAUNCH_FAILED = "launch_failed"
    """Issuing the work to the device raised; the hook saw the exception."""
    DEVICE_FAILED = "device_failed"
    """The device reported an error; the whole path is off."""
    CLOSED = "closed"
    """The path was closed."""


@dataclass(frozen=True, slots=True)
class Settled:
    """Packets of one key with the same end, since the last `collect`.

    drop: None when they were committed to the bus. nbytes: payload bytes (of committed packets).
    """

    key: Hashable
    drop: DeviceDrop | None
    packets: int
    nbytes: int
    error: str | None = None


@dataclass(frozen=True, slots=True)
class DeviceAccount:
    """Every packet offered so far: ``submitted == committed + dropped_total + in_flight``."""

    submitted: int
    committed: int
    committed_bytes: int
    dropped: dict[DeviceDrop, int]
    in_flight: int

    @property
    def dropped_total(self) -> int:
        return sum(self.dropped.values())

    @property
    def imbalance(self) -> int:
        """0 when every packet is accounted for."""
        return self.submitted - self.committed - self.dropped_total - self.in_flight


def describe(error: BaseException) -> str:
    """`ValueError: what it says`."""
    return f"{type(error).__name__}: {error}"
