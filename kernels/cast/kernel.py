"""Floating-point tensors as float16 or bfloat16 on the wire; `decode` widens them back.

Rounded to nearest even from float32 (float64 is narrowed to float32 first); subnormals are kept,
values past the target's range become infinities, infinities stay, every NaN is the positive quiet
one. Two bytes per element.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from asys_bench.contracts.packet import ActivationPacket, tensor_view
from asys_bench.contracts.preprocessor import (
    Encoded,
    KernelOptions,
    KernelPlugin,
    Positions,
    Preprocessor,
    rows_and_width,
)
from asys_bench.kernels.simd.implementations import TORCH, Implementations
from asys_bench.kernels.simd.sections import check_payload, float_rows, refuse_non_float


class CastOptions(KernelOptions):
    """Options of the `cast` preprocessor."""

    dtype: Literal["float16", "bfloat16"] = Field(
        default="bfloat16",
        description="dtype on the wire; float16 has 11 bits of precision and overflows past 65504, "
        "bfloat16 has 8 bits and float32's range",
    )


TARGETS: dict[str, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16}
QUIET_NAN = {torch.float16: 0x7E00, torch.bfloat16: 0x7FC0}
"""torch's own conversion gives several NaN patterns, by vector width; every NaN is sent as this one."""


def write(tensor: torch.Tensor, out: memoryview, positions: Positions | None, bfloat16: int) -> int:
    """Write the payload of `tensor` (or of its rows at `positions`); returns its bytes.

    bfloat16: 1 for bfloat16, 0 for float16 (the compiled module takes numbers).

    Plain torch; every other version writes the same bytes.
    """
    dtype = torch.bfloat16 if bfloat16 else torch.float16
    rows_ND = float_rows("cast", tensor, positions)
    if rows_ND.numel():
        bits_ND = rows_ND.to(dtype).view(torch.int16)
        bits_ND = torch.where(rows_ND.isnan(), QUIET_NAN[dtype], bits_ND)
        tensor_view(out, torch.int16, tuple(rows_ND.shape)).copy_(bits_ND)
    return rows_ND.numel() * 2


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


def _build(options: CastOptions) -> Preprocessor:
    return CastPreprocessor(options.dtype)


def _decoder(encoding: str) -> Preprocessor | None:
    prefix, _, dtype = encoding.partition(".")
    return CastPreprocessor(dtype, TORCH) if prefix == "cast" and dtype in TARGETS else None


plugin = KernelPlugin(
    name="cast",
    summary="floating-point tensors as float16 or bfloat16",
    options=CastOptions,
    build=_build,
    decoder=_decoder,
)
