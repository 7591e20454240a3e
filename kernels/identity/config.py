"""Options of `identity`."""

from __future__ import annotations

from asys_bench.contracts.preprocessor import KernelOptions


class IdentityOptions(KernelOptions):
    """Options of the `identity` preprocessor: it has none."""
