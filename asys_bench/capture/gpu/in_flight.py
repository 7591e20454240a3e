"""A packet between the hook and the bus."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch

from asys_bench.capture.gpu.itinerary import Plan
from asys_bench.capture.gpu.lane import Lane
from asys_bench.capture.gpu.route import Route
from asys_bench.capture.gpu.runtime import DeviceEvent
from asys_bench.contracts.packet import PacketMeta
from asys_bench.contracts.preprocessor import Encoded

MetaBuilder = Callable[[Encoded], PacketMeta]
"""Called once, with what the payload turned out to be, possibly on the commit thread: it must hold
everything that it needs of the moment of the hook."""


@dataclass(slots=True, eq=False)
class Ticket:
    """Admission: a place in staging memory and one in the device's buffer (offsets)."""

    staging: int
    block: int


@dataclass(slots=True, eq=False)
class InFlight:
    """Owned by the flight queue from admission until it is settled.

    meta: None when the committer encodes and so builds it. event: after it, the payload is in
    staging memory. source, target: what the copy reads (device) and writes (staging memory), of the
    payload's size. copy_issued: False while the copy waits for the committer (pageable memory).
    broken: issuing failed half-way; counted already, and there is nothing to deliver, only memory to
    wait for.
    """

    key: Hashable
    lane: Lane
    route: Route
    plan: Plan
    make_meta: MetaBuilder
    meta: PacketMeta | None
    ticket: Ticket
    event: DeviceEvent
    target: torch.Tensor
    timeout_s: float
    submitted_ns: int
    source: torch.Tensor | None = None
    copy_issued: bool = False
    broken: bool = False
