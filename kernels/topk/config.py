"""Options of `topk`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from asys_bench.contracts.preprocessor import KernelOptions


class TopKOptions(KernelOptions):
    """Options of the `topk` preprocessor."""

    k: int = Field(
        default=32,
        ge=1,
        le=65536,
        description="elements kept per row, those of largest magnitude; rows with fewer keep all",
    )
    values: Literal["float32", "bfloat16"] = Field(
        default="float32", description="dtype of the kept values on the wire"
    )
