"""Symmetric int8 with one scale per row ("absmax", as in Dettmers et al., LLM.int8(), 2022, eq. 3).

The formula and the payload are those of `kernels.simd.scaled_rows` with code_max 127: codes lie in
-127..127, rounded half to even, and -128 marks an element that was NaN or infinite and decodes to
NaN. A row of D elements takes D + 4 bytes (and the payload up to 63 more between the arrays).
"""

from __future__ import annotations

import torch

from asys_bench.kernels.int8.reference import CODE_MAX, NON_FINITE, write
from asys_bench.kernels.simd.implementations import Implementations
from asys_bench.kernels.simd.scaled_rows import ScaledRows, rounding_error

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
