"""How tensors of one preprocessor leave the device: as they are, encoded there, or encoded later.

A kernel package offers encoders for tensors on a device (entry point group `asys.device_encoder`). Its
`gpu.py` exports a `DeviceEncoderPlugin` that builds, from an interned encoding name, either a `DeviceEncoder`
or, for a kernel that only chooses rows, a `RowSampler`. The name carries everything that a decoder needs,
so it does for an encoder too. An encoder writes exactly the bytes of the kernel's torch reference, and
tells their number beforehand: nobody may wait for the device to know.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch

from asys_bench.contracts.chain import SEPARATOR
from asys_bench.contracts.packet import NO_PARAMS, PacketError
from asys_bench.contracts.preprocessor import Encoded, Positions, Preprocessor, RowSampler
from asys_bench.registry import PluginError, Registry

log = logging.getLogger(__name__)

ENCODERS = Registry("device_encoder")
IDENTITY = "identity"


class DeviceEncoder(Protocol):
    """One step of a payload's making. Used by one hook, from one thread at a time."""

    def plan(self, shape: tuple[int, ...], dtype: torch.dtype) -> Encoded:
        """What `launch` will write for a tensor of `shape` (with positions: of the chosen rows).

        Raises:
            PacketError: a dtype this encoding cannot carry.
        """

    def launch(self, tensor: torch.Tensor, out: torch.Tensor, positions: Positions | None) -> None:
        """Issue the encoding of `tensor`, or of its rows, to the current stream; never waits.

        tensor: any strides. out: uint8[plan.nbytes], at least one byte, contiguous, 256-byte aligned.
        """

    def warm_up(self, device: torch.device, dtypes: Sequence[torch.dtype]) -> None:
        """Compile what `launch` may need there, so that no hook waits for a compiler."""


@runtime_checkable
class DeviceEncoderPlugin(Protocol):
    """What a kernel's `gpu.py` exports as `plugin`."""

    @property
    def name(self) -> str: ...
    @property
    def summary(self) -> str: ...
    def unavailable(self) -> str | None:
        """A reason why it cannot run here (with the fix), or None."""

    def build(self, encoding: str, /) -> DeviceEncoder | RowSampler | None:
        """From one interned name (a chain's part); None when it is another kernel's."""


class Stage(NamedTuple):
    """One launch of a plan. positions: rows of its input that it reads; None for all."""

    encoder: DeviceEncoder
    positions: Positions | None
    encoded: Encoded


class Plan(NamedTuple):
    """What will be written for one tensor, and how; decided on the host before anything is issued."""

    encoded: Encoded
    stages: tuple[Stage, ...] = ()


def plan_stages(
    steps: Sequence[DeviceEncoder | RowSampler],
    last: DeviceEncoder,
    shape: tuple[int, ...],
    dtype: torch.dtype,
) -> Plan:
    """Plan `steps` and then `last` for a tensor of `shape` and `dtype`.

    A sampler launches nothing: the step behind it reads the rows that it chose where they lie.

    Raises:
        PacketError: a step cannot carry what reaches it.
    """
    stages: list[Stage] = []
    positions: Positions | None = None
    params, row_rate = NO_PARAMS, 1.0
    for step in (*steps, last):
        if isinstance(step, RowSampler):
            positions, params, row_rate = step.select(shape)
            if positions is not None:
                shape = (len(positions), shape[-1])
            continue
        encoded = step.plan(shape, dtype)
        stages.append(Stage(step, positions, encoded))
        positions, shape, dtype = None, tuple(encoded.shape), encoded.dtype
    final = stages[-1].encoded._replace(shape=shape, params=params, row_rate=row_rate)
    return Plan(final, tuple(stages))


def launch_stages(tensor: torch.Tensor, out: torch.Tensor, stages: Sequence[Stage]) -> None:
    """Issue all stages to the current stream; what lies between two of them is a temporary there."""
    for index, (encoder, positions, encoded) in enumerate(stages):
        final = index == len(stages) - 1
        target = out if final else out.new_empty(encoded.nbytes)
        if encoded.nbytes:
            encoder.launch(tensor, target, positions)
        if not final:
            tensor = target.view(encoded.dtype).view(encoded.shape)


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
            return plan_stages(self.steps, self.last, shape, tensor.dtype)
        return Plan(Encoded(tensor.numel() * tensor.element_size(), tensor.dtype, shape))

    def warm_up(self, device: torch.device, dtypes: Sequence[torch.dtype]) -> None:
        """Compile every step that this route launches."""
        for step in (*self.steps, self.last):
            if step is not None and not isinstance(step, RowSampler):
                step.warm_up(device, dtypes)


def launch(tensor: torch.Tensor, out: torch.Tensor, stages: Sequence[Stage]) -> None:
    """Issue a plan's work to the current stream; without stages, the copy that makes it contiguous."""
    if stages:
        launch_stages(tensor, out, stages)
    elif tensor.numel():
        out.view(tensor.dtype).view(tensor.shape).copy_(tensor)


def compile_problem(error: Exception) -> str:
    """What a compiler raised, with the fix where the C compiler that Triton calls is not there."""
    text = f"{type(error).__name__}: {error}"
    if os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"):
        return text
    return f"{text}; Triton builds its launchers with a C compiler and none is on PATH: install gcc"


def route_over_host(preprocessor: Preprocessor, reason: str) -> Route:
    """The slow way, and a line in the log that says why."""
    log.warning(
        "%s cannot be encoded on the device (%s): its tensors are copied at full size and "
        "encoded by the commit thread",
        preprocessor.encoding,
        reason,
    )
    return Route(preprocessor, encode_on_host=True)


def route_of(preprocessor: Preprocessor, encoders: Registry = ENCODERS) -> Route:
    """The best way for `preprocessor` on this machine; says once per hook when it is the slow one."""
    if preprocessor.is_identity:
        return Route(preprocessor)
    try:
        parts = [_part(name, encoders) for name in preprocessor.encoding.split(SEPARATOR)]
        if isinstance(parts[-1], RowSampler):
            parts.append(_part(IDENTITY, encoders))
    except LookupError as error:
        return route_over_host(preprocessor, str(error))
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
