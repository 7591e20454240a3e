"""What a kernel package offers for tensors on a device (entry point group `asys.device_encoder`).

Its `gpu.py` exports a `DeviceEncoderPlugin` that builds, from an interned encoding name, either a
`DeviceEncoder` or, for a kernel that only chooses rows, a `RowSampler`. The names carry everything
that a decoder needs, so they do for an encoder too. An encoder writes exactly the bytes of the
kernel's torch reference, and tells their number beforehand: nobody may wait for the device to know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch

from asys_bench.contracts.preprocessor import Encoded, Positions, RowSampler
from asys_bench.registry import Registry

ENCODERS = Registry("device_encoder")


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
