"""`hooks[].sampling`: how often a hook captures, and how that follows the bus."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from asys_bench.config.section import NotBool, Number, Section


class SamplingConfig(Section):
    """Additive increase, multiplicative decrease of one hook's sampling rate."""

    max_rate: Number = Field(
        default=1.0, gt=0, le=1, description="rate at the start and upper limit, as a probability"
    )
    min_rate: Number = Field(
        default=0.01, gt=0, le=1, description="lower limit of the rate, as a probability"
    )
    decrease_factor: Number = Field(
        default=0.5, gt=0, lt=1, description="the rate is multiplied by this when the bus is full"
    )
    increase_per_s: Number = Field(
        default=0.05,
        ge=0,
        description="the rate grows by this much per second (1/s) while the bus has room",
    )
    high_watermark: Number = Field(
        default=0.75,
        gt=0,
        le=1,
        description="bus fill ratio (0..1) from which on the rate is lowered",
    )
    low_watermark: Number = Field(
        default=0.5, ge=0, lt=1, description="bus fill ratio (0..1) under which the rate recovers"
    )
    seed: Annotated[int, Field(ge=0, lt=1 << 32), NotBool] | None = Field(
        default=None,
        description="seed of the sampler's own generator; null derives it from `run.seed` "
        "and the hook's name",
    )
