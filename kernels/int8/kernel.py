"""Symmetric int8 with one scale per row ("absmax", as in Dettmers et al., LLM.int8(), 2022, eq. 3).

The formula and the payload are those of `kernels.simd.scaled_rows` with code_max 127: codes lie in
-127..127, rounded half to even, and -128 marks an element that was NaN or infinite and decodes to
NaN. A row of D elements takes D + 4 bytes (and the payload up to 63 more between the arrays).
"""

from __future__ import annotations

import torch

from asys_bench.contracts.preprocessor import KernelOptions, KernelPlugin, Positions
from asys_bench.kernels.simd.implementations import TORCH, Implementations
from asys_bench.kernels.simd.scaled_rows import ScaledRows, quantisation, rounding_error, store
from asys_bench.kernels.simd.sections import float_rows

CODE_MAX = 127.0
NON_FINITE = -128
"""The code of NaN and of both infinities; it decodes to NaN."""


def write(tensor: torch.Tensor, out: memoryview, positions: Positions | None = None) -> int:
    """Write the payload of `tensor` (or of its rows at `positions`); returns its bytes.

    Plain torch; every other version writes the same bytes.
    """
    rows_ND = float_rows("int8", tensor, positions)
    if rows_ND.numel() == 0:
        return 0
    scale_N, scaled_ND, finite_ND = quantisation(rows_ND, CODE_MAX)
    codes_ND = torch.where(finite_ND, scaled_ND.round(), float(NON_FINITE)).to(torch.int8)
    return store(out, scale_N, codes_ND, *rows_ND.shape)


_STEP_ERROR = 0.5 + 2.0**-12
"""Half a step, and what float32 rounds in x * (127 / a) and code * scale (below 127 * 2^-22)."""


class Int8Preprocessor(ScaledRows):
    """Floating-point tensors as int8; `implementation` None takes the best one here."""

    encoding = "int8"
    code_dtype = torch.int8
    code_max = CODE_MAX
    implementations = Implementations("int8", "asys_bench.kernels.int8.twin", write)

    def values(self, codes_ND: torch.Tensor) -> torch.Tensor:
        values_ND = codes_ND.to(torch.float32)
        marked_ND = codes_ND == NON_FINITE
        if bool(marked_ND.any()):
            values_ND[marked_ND] = torch.nan
        return values_ND

    def max_error(self, target: torch.Tensor) -> torch.Tensor:
        """Half a step of the row, and the rounding to the tensor's own dtype; float64."""
        step = self.scales(target)
        return step * _STEP_ERROR + rounding_error(target.double().abs() + step, target.dtype)


plugin = KernelPlugin(
    name="int8",
    summary="one signed byte per element, one float32 scale per row",
    options=KernelOptions,
    build=lambda options: Int8Preprocessor(),
    decoder=lambda encoding: Int8Preprocessor(TORCH) if encoding == "int8" else None,
)
