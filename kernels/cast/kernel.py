"""Floating-point tensors as float16 or bfloat16 on the wire; `decode` widens them back.

Rounded to nearest even from float32 (float64 is narrowed to float32 first); subnormals are kept,
values past the target's range become infinities, infinities stay, every NaN is the positive quiet
one. Two bytes per element.
"""

from __future__ import annotations

import torch

from asys_bench.contracts.packet import ActivationPacket, tensor_view
from asys_bench.contracts.preprocessor import (
    Encoded,
    Positions,
    Preprocessor,
    rows_and_width,
)
from asys_bench.kernels.cast.reference import TARGETS, write
from asys_bench.kernels.simd.implementations import Implementations
from asys_bench.kernels.simd.sections import check_payload, refuse_non_float

IMPLEMENTATIONS = Implementations("cast", "asys_bench.kernels.cast.twin", write)


class CastPreprocessor(Preprocessor):
    """Tensors in the narrower `dtype`; `implementation` None takes the best one here."""

    def __init__(self, dtype: str, implementation: str | None = None) -> None:
        self.encoding = f"cast.{dtype}"
        self._dtype = TARGETS[dtype]
        self._write = IMPLEMENTATIONS.writer(implementation, int(dtype == "bfloat16"))

    def payload_bytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        refuse_non_float(self.encoding, dtype)
        rows, width = rows_and_width(shape)
        return rows * width * 2

    def encode(self, tensor: torch.Tensor, out: memoryview) -> Encoded:
        return Encoded(self._write(tensor, out), tensor.dtype, tensor.shape)

    def encode_rows(self, tensor: torch.Tensor, out: memoryview, positions: Positions) -> Encoded:
        shape = (len(positions), rows_and_width(tensor.shape)[1])
        return Encoded(self._write(tensor, out, positions), tensor.dtype, shape)

    def decode(self, packet: ActivationPacket) -> torch.Tensor:
        check_payload(self.encoding, packet, self.payload_bytes(packet.shape, packet.dtype))
        return tensor_view(packet.payload, self._dtype, packet.shape).to(packet.dtype)

    def max_error(self, target: torch.Tensor) -> torch.Tensor:
        """Half a unit in the last place, at least half the smallest subnormal; float64.

        |x| * eps / 2 from float32, and infinity where |x| rounds past the largest value.
        """
        info = torch.finfo(self._dtype)
        size = target.double().abs()
        error = size * (info.eps / 2 + 2.0**-24) + info.smallest_normal * (info.eps / 2)
        return torch.where(size + error > info.max, torch.inf, error)
