"""Options of `cast`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from asys_bench.contracts.preprocessor import KernelOptions


class CastOptions(KernelOptions):
    """Options of the `cast` preprocessor."""

    dtype: Literal["float16", "bfloat16"] = Field(
        default="bfloat16",
        description="dtype on the wire; float16 has 11 bits of precision and overflows past 65504, "
        "bfloat16 has 8 bits and float32's range",
    )
