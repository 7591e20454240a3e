"""Options of the null backend: there are none."""

from __future__ import annotations

from asys_bench.contracts.bus import BusOptions


class NullOptions(BusOptions):
    """Nothing to tune."""
