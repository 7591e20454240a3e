"""Narrow floating-point tensors for the wire; `decode` widens them back to the packet's dtype."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from asys_bench.contracts.packet import ActivationPacket, PacketError, tensor_view
from asys_bench.contracts.preprocessor import Encoded, KernelOptions, Preprocessor

TARGETS: dict[str, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_SUBNORMAL = {torch.float16: 2.0**-25, torch.bfloat16: 2.0**-134}


class CastOptions(KernelOptions):
    """Options of the `cast` preprocessor."""

    dtype: Literal["float16", "bfloat16"] = Field(
        default="bfloat16",
        description="dtype on the wire; float16 has 11 bits of precision and overflows past 65504, "
        "bfloat16 has 8 bits and float32's range",
    )


class CastPreprocessor(Preprocessor):
    """Round to nearest even into `dtype`. Values past float16's range become infinities."""

    def __init__(self, dtype: str) -> None:
        self.encoding = f"cast.{dtype}"
        self._dtype = TARGETS[dtype]

    def encoded_bytes(self, tensor: torch.Tensor) -> int:
        return tensor.numel() * self._dtype.itemsize

    def encode(self, tensor: torch.Tensor, out: memoryview) -> Encoded:
        if not tensor.dtype.is_floating_point:
            raise PacketError(f"{self.encoding} carries floating-point tensors, got {tensor.dtype}")
        shape = tuple(tensor.shape)
        if tensor.numel():
            tensor_view(out, self._dtype, shape).copy_(tensor)
        return Encoded(self.encoded_bytes(tensor), tensor.dtype, shape)

    def decode(self, packet: ActivationPacket) -> torch.Tensor:
        return tensor_view(packet.payload, self._dtype, packet.shape).to(packet.dtype)

    def max_error(self, tensor: torch.Tensor) -> torch.Tensor:
        """Half a unit in the last place: |x| * eps / 2, at least half the smallest subnormal."""
        eps = torch.finfo(self._dtype).eps
        return tensor.abs() * (eps / 2) + _SUBNORMAL[self._dtype]
