"""Options of `random_projection`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from asys_bench.contracts.preprocessor import KernelOptions


class RandomProjectionOptions(KernelOptions):
    """Options of the `random_projection` preprocessor."""

    d_out: int = Field(
        default=64, ge=1, le=65536, description="elements per row after the projection"
    )
    matrix: Literal["gaussian", "achlioptas"] = Field(
        default="gaussian",
        description="entries: normal of variance 1 / d_out, or sqrt(3 / d_out) times +1, 0, -1 with "
        "probabilities 1/6, 2/3, 1/6",
    )
    seed: int = Field(default=0, ge=0, lt=1 << 63, description="seed of the matrix")
    d_in: int | None = Field(
        default=None,
        ge=1,
        le=1 << 24,
        description="width of the hooked rows, to make the matrix when the run starts; null makes "
        "it in the first call of the hook",
    )
