"""Which backends the suite runs over: all that are registered, or the one that was asked for."""

from __future__ import annotations

import os

from asys_bench.conformance import ONLY
from asys_bench.registry import registry


def backends() -> list[str]:
    """Names of registered backends; `python -m asys_bench.conformance NAME` narrows them to one."""
    names = registry("backend").names()
    only = os.environ.get(ONLY)
    return names if only is None else [name for name in names if name == only]
