"""Options of `fp8`."""

from __future__ import annotations

from asys_bench.contracts.preprocessor import KernelOptions


class Fp8Options(KernelOptions):
    """Options of the `fp8` preprocessor: it has none."""
