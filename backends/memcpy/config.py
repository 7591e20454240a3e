"""Options of the memcpy backend: there are none."""

from __future__ import annotations

from asys_bench.contracts.bus import BusOptions


class MemcpyOptions(BusOptions):
    """Nothing to tune."""
