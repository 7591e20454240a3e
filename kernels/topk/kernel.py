"""The k largest magnitudes of each row, with their indices; everything else decodes to zero.

Payload of N rows of D elements, with K = min(k, D): values [N, K] (float32 or bfloat16, rounded to
nearest even), zeros up to a multiple of 64 bytes, then indices [N, K] (uint16 for D <= 65536, else
uint32), ascending within a row. Of equal magnitudes the lowest index is kept; NaN counts as larger
than infinity. Magnitude sparsification of activations as in Strom, "Scalable distributed DNN
training", Interspeech 2015, and Lin et al., "Deep Gradient Compression", ICLR 2018 (without their
error feedback: every packet stands alone).
"""

from __future__ import annotations

import re
from math import prod
from typing import Literal

import torch
from pydantic import Field

from asys_bench.contracts.packet import ActivationPacket, PacketError, tensor_view
from asys_bench.contracts.preprocessor import (
    Encoded,
    KernelOptions,
    KernelPlugin,
    Positions,
    Preprocessor,
    rows_and_width,
)
from asys_bench.kernels.cast.kernel import QUIET_NAN
from asys_bench.kernels.simd.implementations import TORCH, Implementations
from asys_bench.kernels.simd.scaled_rows import rounding_error
from asys_bench.kernels.simd.sections import (
    aligned,
    check_payload,
    empty_or_refused,
    float_rows,
    refuse_non_float,
    two_sections,
)


class TopKOptions(KernelOptions):
    """Options of the `topk` preprocessor."""

    k: int = Field(
        default=32,
        ge=1,
        le=65536,
        description="elements kept per row, those of largest magnitude; rows with fewer keep all",
    )
    values: Literal["float32", "bfloat16"] = Field(
        default="float32", description="dtype of the kept values on the wire"
    )


NAN_KEY = 0x7F800001
"""The sort key of every NaN: past infinity, and the same for all, so that the index decides."""
SHORT_INDEX_WIDTH = 1 << 16
"""Rows of at most this many elements have uint16 indices, wider ones uint32."""


def index_bytes(width: int) -> int:
    """Bytes of one index into a row of `width` elements."""
    return 2 if width <= SHORT_INDEX_WIDTH else 4


def value_bytes(bfloat16: int) -> int:
    """Bytes of one kept value."""
    return 2 if bfloat16 else 4


def payload_bytes(rows: int, width: int, k: int, bfloat16: int) -> int:
    """Size of the whole payload."""
    kept = rows * min(k, width)
    return two_sections(kept * value_bytes(bfloat16), kept * index_bytes(width))


def selected(rows_ND: torch.Tensor, k: int) -> torch.Tensor:
    """int64[N, min(k, D)]: indices of the largest magnitudes, ascending.

    Magnitudes are compared as the bits of |x| (which order as the numbers do), NaN above infinity;
    of equal ones the lower index is kept.
    """
    bits_ND = rows_ND.contiguous().view(torch.int32) & 0x7FFFFFFF
    order_ND = bits_ND.clamp_max(NAN_KEY).sort(dim=1, descending=True, stable=True).indices
    return order_ND[:, :k].sort(dim=1).values


def write(
    tensor: torch.Tensor, out: memoryview, positions: Positions | None, k: int, bfloat16: int
) -> int:
    """Write the payload of `tensor` (or of its rows at `positions`); returns its bytes.

    Plain torch; every other version writes the same bytes.
    """
    rows_ND = float_rows("topk", tensor, positions)
    if rows_ND.numel() == 0:
        return 0
    rows, width = rows_ND.shape
    index_NK = selected(rows_ND, k)
    value_NK = rows_ND.gather(1, index_NK)
    kept = tuple(index_NK.shape)
    if bfloat16:
        bits_NK = value_NK.to(torch.bfloat16).view(torch.int16)
        bits_NK = torch.where(value_NK.isnan(), QUIET_NAN[torch.bfloat16], bits_NK)
    else:
        bits_NK = torch.where(value_NK.isnan(), 0x7FC00000, value_NK.view(torch.int32))
    tensor_view(out, bits_NK.dtype, kept).copy_(bits_NK)
    end = index_NK.numel() * value_bytes(bfloat16)
    start = aligned(end)
    out[end:start] = bytes(start - end)
    short = torch.int16 if index_bytes(width) == 2 else torch.int32  # the bits of the unsigned ones
    tensor_view(out, short, kept, offset=start).copy_(index_NK.to(short))
    return payload_bytes(rows, width, k, bfloat16)


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


_ENCODING = re.compile(r"topk\.k([1-9][0-9]{0,4})\.(float32|bfloat16)")


def _build(options: TopKOptions) -> Preprocessor:
    return TopKPreprocessor(options.k, options.values)


def _decoder(encoding: str) -> Preprocessor | None:
    found = _ENCODING.fullmatch(encoding)
    return TopKPreprocessor(int(found[1]), found[2], TORCH) if found else None


plugin = KernelPlugin(
    name="topk",
    summary="the k largest magnitudes of each row; the rest decodes to zero",
    options=TopKOptions,
    build=_build,
    decoder=_decoder,
)
