"""Packets between hook and bus, in order, and the fixed memory that they occupy."""

from __future__ import annotations

import threading
import time
from collections import deque

import torch

from asys_bench.capture.gpu.in_flight import InFlight, Ticket
from asys_bench.capture.gpu.outcome import DeviceAccount, DeviceCounters, DeviceDrop
from asys_bench.capture.gpu.side_stream import FifoArena, SideStream
from asys_bench.contracts.stats import Slot


class FlightQueue:
    """Filled by hooks, emptied by one committer.

    `changed` guards everything here and in the side streams; the caller of a method holds it. Packets are
    settled in the order of their admission, whatever device they come from, so that the order on the
    bus is the order of the hooks.
    """

    def __init__(self, staging: torch.Tensor, max_in_flight: int, slot: Slot | None) -> None:
        self.changed = threading.Condition()
        self.counters = DeviceCounters(slot)
        self.refusal: DeviceDrop | None = None
        """Why nothing is admitted any more: CLOSED or DEVICE_FAILED."""
        self._packets: deque[InFlight] = deque()
        self._staging = staging
        self._arena = FifoArena(staging.numel())
        self._max = max_in_flight
        self._claimed = False
        self._in_flight = 0  # packets that are not broken: those are counted as dropped already

    def admit(self, side: SideStream, nbytes: int, timeout_s: float) -> Ticket | DeviceDrop:
        """Room for `nbytes`, waiting up to `timeout_s` for it (0: not at all)."""
        if nbytes > min(self._arena.capacity, side.arena.capacity):
            return DeviceDrop.TOO_LARGE
        deadline = time.monotonic() + timeout_s if timeout_s > 0 else 0.0
        while True:
            if self.refusal is not None:
                return self.refusal
            ticket = self._try_admit(side, nbytes)
            if ticket is not None:
                return ticket
            remaining = deadline - time.monotonic() if timeout_s > 0 else 0.0
            if remaining <= 0:
                return DeviceDrop.IN_FLIGHT_FULL
            self.changed.wait(remaining)

    def _try_admit(self, side: SideStream, nbytes: int) -> Ticket | None:
        if len(self._packets) >= self._max:
            return None
        staging = self._arena.allocate(nbytes)
        if staging is None:
            return None
        block = side.arena.allocate(nbytes)
        if block is None:
            self._arena.undo_newest()
            return None
        return Ticket(staging, block)

    def memory_of(self, ticket: Ticket, nbytes: int) -> torch.Tensor:
        """uint8[nbytes] of staging memory."""
        return self._staging[ticket.staging : ticket.staging + nbytes]

    def append(self, packet: InFlight) -> None:
        self._packets.append(packet)
        if not packet.broken:
            self._in_flight += 1
            self.counters.in_flight(self._in_flight)
        self.changed.notify_all()

    def head(self) -> InFlight | None:
        return self._packets[0] if self._packets else None

    def claim(self, packet: InFlight) -> bool:
        """`packet` goes to the bus now. False: it was abandoned while the device was waited for."""
        self._claimed = self.head() is packet
        return self._claimed

    def settle(self, drop: DeviceDrop | None, nbytes: int = 0, error: str | None = None) -> None:
        """The claimed head is done with: count it (`nbytes` of payload), give its memory back."""
        self._claimed = False
        packet = self._packets.popleft()
        self._count(packet, drop, nbytes, error)
        self._arena.free_through(packet.ticket.staging)
        packet.side.arena.free_through(packet.ticket.block)
        packet.side.give_event(packet.event)
        self.changed.notify_all()

    def abandon(self, drop: DeviceDrop, error: str) -> int:
        """Refuse from now on and count everything as dropped, but for a packet that is claimed.

        Returns how many those were. Their memory stays taken for good, since nobody can tell any
        more what the device still does with it.
        """
        if self.refusal is not DeviceDrop.DEVICE_FAILED:
            self.refusal = drop
        abandoned = 0
        while len(self._packets) > self._claimed:
            self._count(self._packets.pop(), drop, 0, error)
            abandoned += 1
        self.changed.notify_all()
        return abandoned

    def _count(
        self, packet: InFlight, drop: DeviceDrop | None, nbytes: int, error: str | None
    ) -> None:
        if packet.broken:
            return
        self._in_flight -= 1
        if drop is None:
            latency_ns = time.perf_counter_ns() - packet.submitted_ns
            self.counters.committed(packet.key, nbytes, latency_ns)
        else:
            self.counters.dropped(packet.key, drop, error)
        self.counters.in_flight(self._in_flight)

    def account(self) -> DeviceAccount:
        return self.counters.account(self._in_flight)

    def fill_ratio(self) -> float:
        """The fuller of memory and places, 0..1."""
        return max(len(self._packets) / self._max, self._arena.used / self._arena.capacity)

    def __len__(self) -> int:
        return len(self._packets)
