"""E4M3 with one scale per row (OCP 8-bit Floating Point Specification 1.0, 2023, section 5).

e4m3fn has 4 exponent bits (bias 7), 3 mantissa bits, no infinity, one NaN per sign and 448 as its
largest finite value. A row is scaled so that its largest magnitude becomes 448 (the formula and the
payload are those of `kernels.simd.scaled_rows`), then rounded as `torch.float8_e4m3fn` does: to
nearest even, subnormals in steps of 2^-9, saturating at 448. NaN and both infinities become the
positive NaN (0x7F). A row of D elements takes D + 4 bytes.

Against int8 at the same size: relative error of small elements is 1/16 down to 2^-15 of the row's
largest, where int8 rounds everything below 1/254 of it to zero; int8 is 9 times finer near the top.
"""

from __future__ import annotations

import torch

from asys_bench.contracts.preprocessor import KernelOptions, KernelPlugin, Positions
from asys_bench.kernels.simd.implementations import TORCH, Implementations
from asys_bench.kernels.simd.scaled_rows import ScaledRows, quantisation, rounding_error, store
from asys_bench.kernels.simd.sections import float_rows

CODE_MAX = 448.0
"""The largest finite float8_e4m3fn."""


def write(tensor: torch.Tensor, out: memoryview, positions: Positions | None = None) -> int:
    """Write the payload of `tensor` (or of its rows at `positions`); returns its bytes.

    Plain torch; every other version writes the same bytes.
    """
    rows_ND = float_rows("fp8.e4m3fn", tensor, positions)
    if rows_ND.numel() == 0:
        return 0
    scale_N, scaled_ND, finite_ND = quantisation(rows_ND, CODE_MAX)
    saturated_ND = scaled_ND.clamp(-CODE_MAX, CODE_MAX)
    codes_ND = torch.where(finite_ND, saturated_ND, torch.nan).to(torch.float8_e4m3fn)
    return store(out, scale_N, codes_ND, *rows_ND.shape)


ENCODING = "fp8.e4m3fn"
_HALF_ULP = 2.0**-4
_HALF_SUBNORMAL = 2.0**-10


class Fp8Preprocessor(ScaledRows):
    """Floating-point tensors as float8_e4m3fn; `implementation` None takes the best one here."""

    encoding = ENCODING
    code_dtype = torch.float8_e4m3fn
    code_max = CODE_MAX
    implementations = Implementations("fp8", "asys_bench.kernels.fp8.twin", write)

    def values(self, codes_ND: torch.Tensor) -> torch.Tensor:
        return codes_ND.to(torch.float32)

    def max_error(self, target: torch.Tensor) -> torch.Tensor:
        """|x| / 16, at least half a subnormal step, and the rounding to the tensor's dtype; float64."""
        scale, size = self.scales(target), target.double().abs()
        error = torch.maximum(size * _HALF_ULP, scale * _HALF_SUBNORMAL) * (1 + 2.0**-12)
        return error + rounding_error(size + error, target.dtype)


plugin = KernelPlugin(
    name="fp8",
    summary="e4m3 floats of one byte, one float32 scale per row",
    options=KernelOptions,
    build=lambda options: Fp8Preprocessor(),
    decoder=lambda encoding: Fp8Preprocessor(TORCH) if encoding == ENCODING else None,
)
