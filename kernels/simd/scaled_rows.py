"""Codes of one byte with one float32 scale per row: what int8 and fp8 have in common.

Payload of `rows` x `width` elements: float32[rows] scales, zeros up to a multiple of 64 bytes, then
one code per element. A row is quantised by its largest finite magnitude::

    a     = max(|x| over the row's finite elements, SMALLEST)
    scale = min(a / code_max, largest scale whose product with code_max is finite)
    code  = round(x * (code_max / a)),     decoded x = code * scale

with every operation rounded to float32, to nearest even. The reciprocal is used because a division
per element would cost more than reading the memory. SMALLEST = 2^-117 keeps `code_max / a` and
`scale` normal numbers: rows whose largest magnitude is below it (6e-36) are quantised as if it were
SMALLEST, so a row of zeros decodes to zeros. Non-finite elements do not touch the scale.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import cache
from math import prod

import numpy as np
import torch

from asys_bench.contracts.packet import ActivationPacket, PacketError, tensor_view
from asys_bench.contracts.preprocessor import Encoded, Positions, Preprocessor, rows_and_width
from asys_bench.kernels.simd.implementations import Implementations
from asys_bench.kernels.simd.sections import (
    aligned,
    check_payload,
    empty_or_refused,
    refuse_non_float,
    two_sections,
)

SMALLEST = 2.0**-117
INFINITY_BITS = 0x7F800000


@cache
def largest_scale(code_max: float) -> float:
    """The largest float32 whose product with `code_max` rounds to a finite float32."""
    limit = np.finfo(np.float32).max
    scale = np.float32(limit / np.float32(code_max))
    with np.errstate(over="ignore"):
        while not np.isfinite(scale * np.float32(code_max)):
            scale = np.nextafter(scale, np.float32(0))
        while np.isfinite(np.nextafter(scale, limit) * np.float32(code_max)):
            scale = np.nextafter(scale, limit)
    return float(scale)


def quantisation(
    rows_ND: torch.Tensor, code_max: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The torch reference's scales float32[N], x / scale float32[N, D] and finiteness bool[N, D].

    rows_ND: float32 with D >= 1. Non-finite elements come back as zeros.
    """
    finite_ND = (rows_ND.contiguous().view(torch.int32) & 0x7FFFFFFF) < INFINITY_BITS
    values_ND = torch.where(finite_ND, rows_ND, 0.0)
    peak_N = values_ND.abs().amax(1).clamp_min(SMALLEST)
    code_max_N = torch.full_like(
        peak_N, code_max
    )  # a tensor: CUDA turns x / number into x * (1 / number)
    scale_N = (peak_N / code_max_N).clamp_max(largest_scale(code_max))
    inverse_N = code_max_N / peak_N
    return scale_N, values_ND * inverse_N[:, None], finite_ND


def store(
    out: memoryview, scale_N: torch.Tensor, codes_ND: torch.Tensor, rows: int, width: int
) -> int:
    """Write both arrays and the gap between them; returns the payload's bytes."""
    start = aligned(4 * rows)
    tensor_view(out, torch.float32, (rows,)).copy_(scale_N)
    out[4 * rows : start] = bytes(start - 4 * rows)
    tensor_view(out, codes_ND.dtype, (rows, width), offset=start).copy_(codes_ND)
    return start + rows * width


class ScaledRows(Preprocessor):
    """One byte per element and one float32 scale per row; subclasses name the code."""

    code_dtype: torch.dtype
    code_max: float
    implementations: Implementations

    def __init__(self, implementation: str | None = None) -> None:
        self._write = self.implementations.writer(implementation)

    def payload_bytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        refuse_non_float(self.encoding, dtype)
        rows, width = rows_and_width(shape)
        return two_sections(4 * rows, rows * width)

    def encode(self, tensor: torch.Tensor, out: memoryview) -> Encoded:
        return Encoded(self._write(tensor, out), tensor.dtype, tensor.shape)

    def encode_rows(self, tensor: torch.Tensor, out: memoryview, positions: Positions) -> Encoded:
        shape = (len(positions), rows_and_width(tensor.shape)[1])
        return Encoded(self._write(tensor, out, positions), tensor.dtype, shape)

    def decode(self, packet: ActivationPacket) -> torch.Tensor:
        shape, dtype = packet.shape, packet.dtype
        if not dtype.is_floating_point:
            raise PacketError(f"{self.encoding} decodes floating-point tensors, not {dtype}")
        rows, width = rows_and_width(shape)
        check_payload(self.encoding, packet, two_sections(4 * rows, rows * width))
        if prod(shape) == 0:
            return empty_or_refused(shape, dtype)
        scale_N = tensor_view(packet.payload, torch.float32, (rows,))
        codes_ND = tensor_view(
            packet.payload, self.code_dtype, (rows, width), offset=aligned(4 * rows)
        )
        return (self.values(codes_ND) * scale_N[:, None]).to(dtype).reshape(shape)

    @abstractmethod
    def values(self, codes_ND: torch.Tensor) -> torch.Tensor:
        """The codes as float32; NaN for the code of non-finite elements."""

    def scales(self, target: torch.Tensor) -> torch.Tensor:
        """float64 scale of every element's row, shaped to broadcast against `target`."""
        rows, width = rows_and_width(target.shape)
        if rows * width == 0:
            return torch.zeros((), dtype=torch.float64)
        scale_N = quantisation(target.float().reshape(rows, width), self.code_max)[0].double()
        return scale_N.reshape(*target.shape[:-1], 1) if target.dim() else scale_N.reshape(())


def rounding_error(magnitude: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Bound on rounding float64 `magnitude` to `dtype` (float64 passes through float32): half an ulp."""
    info = torch.finfo(torch.float32 if dtype is torch.float64 else dtype)
    return magnitude * (info.eps / 2) + info.smallest_normal * (info.eps / 2)
