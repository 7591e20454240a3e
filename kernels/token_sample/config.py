"""Options of `token_sample`."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from asys_bench.contracts.preprocessor import KernelOptions

DEFAULT_FRACTION = 0.25
"""What is kept when none of `fraction`, `rows` and `every` is set."""


class TokenSampleOptions(KernelOptions):
    """Options of the `token_sample` preprocessor: at most one of `fraction`, `rows` and `every`."""

    fraction: float | None = Field(
        default=None,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="share of a tensor's rows to keep, drawn anew for every packet; 0.25 when none "
        "of fraction, rows and every is set",
    )
    rows: int | None = Field(
        default=None,
        ge=1,
        le=1 << 24,
        description="number of rows to keep, drawn anew for every packet; smaller tensors travel "
        "whole",
    )
    every: int | None = Field(
        default=None,
        ge=1,
        le=1 << 24,
        description="keep rows 0, every, 2 * every, ... of each tensor; no draw, so it can alias "
        "with sequence lengths",
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=1 << 63,
        description="seed of the draws; hooks with the same seed keep the same rows",
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        given = [name for name in ("fraction", "rows", "every") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are set; keep one of fraction, rows and every")
        return self
