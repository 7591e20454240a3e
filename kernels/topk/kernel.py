"""The k largest magnitudes of each row, with their indices; everything else decodes to zero.

Payload of N rows of D elements, with K = min(k, D): values [N, K] (float32 or bfloat16, rounded to
nearest even), zeros up to a multiple of 64 bytes, then indices [N, K] (uint16 for D <= 65536, else
uint32), ascending within a row. Of equal magnitudes the lowest index is kept; NaN counts as larger
than infinity. Magnitude sparsification of activations as in Strom, "Scalable distributed DNN
training", Interspeech 2015, and Lin et al., "Deep Gradient Compression", ICLR 2018 (without their
error feedback: every packet stands alone).
"""

from __future__ import annotations

from math import prod

import torch

from asys_bench.contracts.packet import ActivationPacket, PacketError, tensor_view
from asys_bench.contracts.preprocessor import (
    Encoded,
    Positions,
    Preprocessor,
    rows_and_width,
)
from asys_bench.kernels.simd.implementations import Implementations
from asys_bench.kernels.simd.scaled_rows import rounding_error
from asys_bench.kernels.simd.sections import (
    aligned,
    check_payload,
    empty_or_refused,
    refuse_non_float,
)
from asys_bench.kernels.topk.reference import (
    index_bytes,
    payload_bytes,
    selected,
    value_bytes,
    write,
)

MAX_DENSE_BYTES = 1 << 30
"""A few bytes can name a huge row: decoding refuses to make a larger tensor than this."""
IMPLEMENTATIONS = Implementations("topk", "asys_bench.kernels.topk.twin", write)


class TopKPreprocessor(Preprocessor):
    """Rows as their `k` largest magnitudes; `implementation` None takes the best one here."""

    def __init__(self, k: int, values: str, implementation: str | None = None) -> None:
        self.encoding = f"topk.k{k}.{values}"
        self._k, self._bfloat16 = k, int(values == "bfloat16")
        self._write = IMPLEMENTATIONS.writer(implementation, k, self._bfloat16)

    def payload_bytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        refuse_non_float(self.encoding, dtype)
        return payload_bytes(*rows_and_width(shape), self._k, self._bfloat16)

    def encode(self, tensor: torch.Tensor, out: memoryview) -> Encoded:
        return Encoded(self._write(tensor, out), tensor.dtype, tensor.shape)

    def encode_rows(self, tensor: torch.Tensor, out: memoryview, positions: Positions) -> Encoded:
        shape = (len(positions), rows_and_width(tensor.shape)[1])
        return Encoded(self._write(tensor, out, positions), tensor.dtype, shape)

    def decode(self, packet: ActivationPacket) -> torch.Tensor:
        shape, dtype = packet.shape, packet.dtype
        check_payload(self.encoding, packet, self.payload_bytes(shape, dtype))
        if prod(shape) == 0:
            return empty_or_refused(shape, dtype)
        if prod(shape) * dtype.itemsize > MAX_DENSE_BYTES:
            raise PacketError(f"{self.encoding}: {shape} is more than {MAX_DENSE_BYTES} bytes")
        rows, width = rows_and_width(shape)
        kept = (rows, min(self._k, width))
        stored = torch.bfloat16 if self._bfloat16 else torch.float32
        value_NK = tensor_view(packet.payload, stored, kept)
        start = aligned(rows * kept[1] * value_bytes(self._bfloat16))
        short = index_bytes(width) == 2
        raw_NK = tensor_view(
            packet.payload, torch.int16 if short else torch.int32, kept, offset=start
        )
        index_NK = raw_NK.to(torch.int64) & (0xFFFF if short else 0xFFFFFFFF)
        if int(index_NK.max()) >= width:
            raise PacketError(
                f"{self.encoding}: an index reaches past the {width} elements of a row"
            )
        dense_ND = torch.zeros(rows, width, dtype=dtype)
        return dense_ND.scatter_(1, index_NK, value_NK.to(dtype)).reshape(shape)

    def max_error(self, target: torch.Tensor) -> torch.Tensor:
        """The rounding of kept elements, the whole element where it was dropped; float64."""
        size = target.double().abs()
        if target.numel() == 0:
            return size
        rows_ND = target.float().reshape(rows_and_width(target.shape))
        index_NK = selected(rows_ND, self._k)
        kept_ND = torch.zeros(rows_ND.shape, dtype=torch.bool).scatter_(1, index_NK, True)
        rounded = rounding_error(size, target.dtype)
        if self._bfloat16:
            rounded = rounded + rounding_error(size, torch.bfloat16)
        return torch.where(kept_ND.reshape(target.shape), rounded, size)
