"""A packet between the hook and the bus."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch

from asys_bench.capture.gpu.route import Plan, Route, launch
from asys_bench.capture.gpu.runtime import DeviceEvent, DeviceRuntime, copy_bytes
from asys_bench.capture.gpu.side_stream import SideStream
from asys_bench.contracts.encodings.padding import write_count
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
    staging memory. real: bool, which of the tensor's rows are tokens, in host memory or on the device;
    it travels behind the payload (`encodings.padding`). source, target: what the copy reads (device)
    and writes (staging memory); `target` ends with what is written from here. copy_issued: False while
    the copy waits for the committer (pageable memory). broken: issuing failed half-way; counted
    already, and there is nothing to deliver, only memory to wait for.
    """

    key: Hashable
    side: SideStream
    route: Route
    plan: Plan
    make_meta: MetaBuilder
    meta: PacketMeta | None
    ticket: Ticket
    event: DeviceEvent
    target: torch.Tensor
    timeout_s: float
    submitted_ns: int
    real: torch.Tensor | None = None
    source: torch.Tensor | None = None
    copy_issued: bool = False
    broken: bool = False

    @property
    def arriving(self) -> torch.Tensor:
        """The part of `target` that the copy writes."""
        assert self.source is not None
        return self.target[: self.source.numel()]


def hand_over(runtime: DeviceRuntime, side: SideStream) -> None:
    """Step 3 of the protocol (`streamer`): the side stream waits for what the host's stream was given
    until now."""
    side.handover.record(runtime.current_stream(side.device))
    side.stream.wait_event(side.handover)


def issue(
    runtime: DeviceRuntime, packet: InFlight, tensor: torch.Tensor, *, copy_now: bool
) -> None:
    """Steps 2 and 3 of the protocol (`streamer`): issue everything of `packet`. With `copy_now` False
    the copy is left to the committer.

    Every tensor that the side stream reads is referenced by `packet` before it is issued.
    """
    side, real = packet.side, packet.real
    (nbytes, *_), stages = packet.plan
    travels = nbytes
    if real is not None:
        write_count(packet.target.numpy().data, real.numel())
        if real.is_cpu:
            packet.target[nbytes : nbytes + real.numel()].copy_(real.reshape(-1))
        else:
            travels += real.numel()
    source = packet.source = side.block(packet.ticket.block, travels)
    runtime.run_inline(side.device, launch, tensor, source[:nbytes], stages)
    if travels > nbytes:
        runtime.run_inline(side.device, copy_flags, source[nbytes:], real)
    hand_over(runtime, side)
    if copy_now:
        packet.copy_issued = True
        runtime.run(side.stream, copy_bytes, packet.arriving, source)
        packet.event.record(side.stream)


def copy_flags(target: torch.Tensor, flags: torch.Tensor) -> None:
    """Copy of a tensor of booleans to `target` (uint8), on one device."""
    target.view(torch.bool).copy_(flags.reshape(-1))
