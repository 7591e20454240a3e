"""Steps 2 and 3 of the protocol (see `streamer`): putting a packet's work onto the streams."""

from __future__ import annotations

import torch

from asys_bench.capture.gpu.in_flight import InFlight
from asys_bench.capture.gpu.lane import Lane
from asys_bench.capture.gpu.route import launch
from asys_bench.capture.gpu.runtime import DeviceRuntime, copy_bytes


def hand_over(runtime: DeviceRuntime, lane: Lane) -> None:
    """What the side stream does next comes after what the host's stream was given until now."""
    lane.handover.record(runtime.current_stream(lane.device))
    lane.side.wait_event(lane.handover)


def issue(
    runtime: DeviceRuntime, packet: InFlight, tensor: torch.Tensor, *, copy_now: bool
) -> None:
    """Issue everything of `packet`; with `copy_now` False all but the copy, which is the committer's.

    Every tensor that the side stream reads is referenced by `packet` before it is issued.
    """
    lane = packet.lane
    (nbytes, *_), hops = packet.plan
    packet.source = lane.block(packet.ticket.block, nbytes)
    runtime.run_inline(lane.device, launch, tensor, packet.source, hops)
    hand_over(runtime, lane)
    if copy_now:
        packet.copy_issued = True
        runtime.run(lane.side, copy_bytes, packet.target, packet.source)
        packet.event.record(lane.side)
