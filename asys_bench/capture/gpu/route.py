"""How tensors of one preprocessor leave the device: as they are, encoded there, or encoded later."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from asys_bench.capture.gpu.encoder import ENCODERS, DeviceEncoder, DeviceEncoderPlugin
from asys_bench.capture.gpu.itinerary import Hop, Plan, launch_hops, plan_hops
from asys_bench.contracts.chain import SEPARATOR
from asys_bench.contracts.packet import PacketError
from asys_bench.contracts.preprocessor import Encoded, Preprocessor, RowSampler
from asys_bench.registry import PluginError, Registry

log = logging.getLogger(__name__)

IDENTITY = "identity"


@dataclass(frozen=True, slots=True)
class Route:
    """last: the encoder of the payload, behind `steps`; None copies the tensor's own bytes.

    encode_on_host: those bytes are then encoded by the committer, straight into the bus's memory.
    """

    preprocessor: Preprocessor
    last: DeviceEncoder | None = None
    steps: tuple[DeviceEncoder | RowSampler, ...] = ()
    encode_on_host: bool = False

    def plan(self, tensor: torch.Tensor) -> Plan:
        """What will be copied for `tensor`; a sampler draws.

        Raises:
            PacketError: the encoding cannot carry this tensor.
        """
        if tensor.layout is not torch.strided:
            name = self.preprocessor.encoding
            raise PacketError(f"{name} carries strided tensors, got {tensor.layout}")
        shape = tuple(tensor.shape)
        if self.last is not None:
            return plan_hops(self.steps, self.last, shape, tensor.dtype)
        return Plan(Encoded(tensor.numel() * tensor.element_size(), tensor.dtype, shape))

    def warm_up(self, device: torch.device, dtypes: Sequence[torch.dtype]) -> None:
        """Compile every step that this route launches."""
        for step in (*self.steps, self.last):
            if step is not None and not isinstance(step, RowSampler):
                step.warm_up(device, dtypes)


def launch(tensor: torch.Tensor, out: torch.Tensor, hops: Sequence[Hop]) -> None:
    """Issue a plan's work to the current stream; without hops, the copy that makes it contiguous."""
    if hops:
        launch_hops(tensor, out, hops)
    elif tensor.numel():
        out.view(tensor.dtype).view(tensor.shape).copy_(tensor)


def route_of(preprocessor: Preprocessor, encoders: Registry = ENCODERS) -> Route:
    """The best way for `preprocessor` on this machine; says once per hook when it is the slow one."""
    if preprocessor.is_identity:
        return Route(preprocessor)
    try:
        parts = [_part(name, encoders) for name in preprocessor.encoding.split(SEPARATOR)]
        if isinstance(parts[-1], RowSampler):
            parts.append(_part(IDENTITY, encoders))
    except LookupError as error:
        log.warning(
            "%s cannot be encoded on the device (%s): its tensors are copied at full size and "
            "encoded by the commit thread",
            preprocessor.encoding,
            error,
        )
        return Route(preprocessor, encode_on_host=True)
    last = parts.pop()
    assert not isinstance(last, RowSampler)
    return Route(preprocessor, last, tuple(parts))


def _part(encoding: str, encoders: Registry) -> DeviceEncoder | RowSampler:
    """Raises LookupError: no kernel has it, or the one that has cannot run here; says why."""
    problem = "no kernel has a device encoder for it"
    for name in encoders.names():
        try:
            plugin = encoders.get(name, DeviceEncoderPlugin)  # type: ignore[type-abstract]
        except PluginError as error:
            if encoding.partition(".")[0] == name:
                problem = str(error)
            continue
        built = plugin.build(encoding)
        if built is None:
            continue
        reason = plugin.unavailable()
        if reason is None:
            return built
        problem = reason
    raise LookupError(f"{encoding}: {problem}")
