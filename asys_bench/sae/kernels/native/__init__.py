"""The compiled kernels of SAE training (C++, built with the wheel), loaded on first use.

Without a compiler they are not there: torch's own operators then do the same work, at about half the
speed (docs/benchmarks.md).
"""

from __future__ import annotations

from functools import cache
from types import ModuleType


@cache
def kernels() -> ModuleType | None:
    """The module `_kernels`; None where it was not built."""
    try:
        from asys_bench.sae.kernels.native import _kernels
    except ImportError:
        return None
    return _kernels


def unavailable() -> str | None:
    """Why the compiled kernels cannot be used here, with the fix; None when they can."""
    if kernels() is None:
        return (
            "the compiled SAE kernels are missing: install a C++20 compiler and reinstall with "
            "ASYS_REQUIRE_CPP=1 pip install .; training goes on with torch's operators"
        )
    return None
