"""`hooks[].sampling`: how often a hook captures, and how that follows the bus."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from asys_bench.config.sections.section import NotBool, Number, Section


class SamplingConfig(Section):
    """One hook's sampling rate: follows the bus (`bus.on_full: sample`) and a budget of rows.

    The laws are `capture.backpressure` and `capture.row_budget`.
    """

    max_rate: Number = Field(
        default=1.0, gt=0, le=1, description="rate at the start and upper limit, as a probability"
    )
    min_rate: Number = Field(
        default=0.01,
        gt=0,
        le=1,
        description="lower limit of the rate, as a probability; only max_rows_per_s may go below it",
    )
    decrease_factor: Number = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="the rate is multiplied by this when the bus refused a packet",
    )
    increase_per_s: Number = Field(
        default=0.05,
        ge=0,
        description="the rate grows by this much per second (1/s) while the bus is empty, by less "
        "the nearer its fill is to low_watermark",
    )
    high_watermark: Number = Field(
        default=0.75,
        gt=0,
        le=1,
        description="bus fill ratio (0..1) at which the rate is a tenth of what it was at "
        "low_watermark; it falls exponentially in between and beyond",
    )
    low_watermark: Number = Field(
        default=0.5,
        ge=0,
        lt=1,
        description="bus fill ratio (0..1) that the rate settles at while readers are too slow; "
        "under it the rate recovers",
    )
    max_rows_per_s: Number | None = Field(
        default=None,
        gt=0,
        description="rows per second that this hook sends on average; the rate is lowered to keep "
        "it (what a row is: `hooks[].rows`). null: as many as the bus takes",
    )
    seed: Annotated[int, Field(ge=0, lt=1 << 32), NotBool] | None = Field(
        default=None,
        description="seed of the sampler's own generator; null derives it from `run.seed` "
        "and the hook's name",
    )
