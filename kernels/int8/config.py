"""Options of `int8`."""

from __future__ import annotations

from asys_bench.contracts.preprocessor import KernelOptions


class Int8Options(KernelOptions):
    """Options of the `int8` preprocessor: it has none."""
