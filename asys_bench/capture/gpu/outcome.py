"""What became of the packets that were handed to the device path. Every one has one outcome."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import StrEnum

from asys_bench.capture.gpu.pinned_region import CopyBandwidth
from asys_bench.contracts.stats import Slot


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


class DeviceCounters:
    """Counts outcomes for the account, for each hook, and on the stats page.

    Not thread-safe: the streamer holds its lock around every call.
    """

    def __init__(self, slot: Slot | None) -> None:
        self._submitted = 0
        self._committed = 0
        self._committed_bytes = 0
        self._dropped = dict.fromkeys(DeviceDrop, 0)
        self._open: dict[tuple[Hashable, DeviceDrop | None], tuple[int, int, str | None]] = {}
        self._slot = slot
        if slot is not None:
            self._committed_counter = slot.counter("device_committed")
            self._bytes_counter = slot.counter("device_committed_bytes")
            self._drop_counters = {
                drop: slot.counter("device_dropped", reason=drop.value) for drop in DeviceDrop
            }
            self._in_flight_gauge = slot.gauge("device_in_flight")
            self._latency = slot.histogram("device_latency_ns")
            self._pin_failed = slot.counter("device_pin_failed")

    def submitted(self) -> None:
        self._submitted += 1

    def committed(self, key: Hashable, nbytes: int, latency_ns: int) -> None:
        self._committed += 1
        self._committed_bytes += nbytes
        self._note(key, None, nbytes, None)
        if self._slot is not None:
            self._committed_counter.add()
            self._bytes_counter.add(nbytes)
            self._latency.record(latency_ns)

    def dropped(self, key: Hashable, drop: DeviceDrop, error: str | None = None) -> None:
        self._dropped[drop] += 1
        self._note(key, drop, 0, error)
        if self._slot is not None:
            self._drop_counters[drop].add()

    def in_flight(self, packets: int) -> None:
        if self._slot is not None:
            self._in_flight_gauge.set(packets)

    def bandwidth(self, device: str, measured: CopyBandwidth, pinned: bool) -> None:
        """What was measured at start: `device_copy_gbps{device=, memory=}`, `device_pin_failed`."""
        if self._slot is None:
            return
        gauge = self._slot.gauge
        if measured.pinned_gbps is not None:
            gauge("device_copy_gbps", device=device, memory="pinned").set(measured.pinned_gbps)
        gauge("device_copy_gbps", device=device, memory="pageable").set(measured.pageable_gbps)
        if not pinned:
            self._pin_failed.add()

    def collect(self) -> list[Settled]:
        """What was settled since the last call, summed per key and outcome (so it stays small)."""
        settled = [
            Settled(key, drop, packets, nbytes, error)
            for (key, drop), (packets, nbytes, error) in self._open.items()
        ]
        self._open = {}
        return settled

    def account(self, in_flight: int) -> DeviceAccount:
        return DeviceAccount(
            self._submitted,
            self._committed,
            self._committed_bytes,
            {drop: count for drop, count in self._dropped.items() if count},
            in_flight,
        )

    def _note(self, key: Hashable, drop: DeviceDrop | None, nbytes: int, error: str | None) -> None:
        packets, total, first_error = self._open.get((key, drop), (0, 0, None))
        self._open[key, drop] = (packets + 1, total + nbytes, first_error or error)
