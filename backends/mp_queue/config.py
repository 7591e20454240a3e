"""Options of the mp_queue backend (`bus.options.mp_queue` in YAML)."""

from __future__ import annotations

from pydantic import Field

from asys_bench.contracts.bus import BusOptions


class MpQueueOptions(BusOptions):
    """What a user may tune; the defaults suit a laptop."""

    prefetch: bool = Field(
        default=False,
        description="Ask for the next batch while the last is worked on. Faster, but a killed reader "
        "then costs two batches, and a slow member holds a batch that others could have read.",
    )
    connect_timeout_s: float = Field(
        default=10.0,
        gt=0,
        description="How long a consumer waits for the owner's welcome, seconds.",
    )
