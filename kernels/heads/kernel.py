"""Rows of a projection as rows of its heads; values as they are.

A tensor [..., D] with `count` heads becomes [..., K, D / count] for the K heads that are kept, or
[..., D / count] for one. A scalar is a row of one element.
"""

from __future__ import annotations

import re
from typing import Annotated, Self

import torch
from pydantic import Field, model_validator

from asys_bench.contracts.packet import MAX_NDIM, PacketError
from asys_bench.contracts.preprocessor import (
    Encoded,
    KernelOptions,
    KernelPlugin,
    Preprocessor,
    Role,
    Stage,
    Staged,
    rows_and_width,
)

MOST_HEADS = 256
"""The kept ones are a number of as many bits in the encoding's name."""


class HeadsOptions(KernelOptions):
    """Options of the `heads` preprocessor."""

    count: int = Field(
        default=1,
        ge=1,
        le=MOST_HEADS,
        description="heads in the width of a row, which it must divide; 1 splits nothing",
    )
    keep: tuple[Annotated[int, Field(ge=0, lt=MOST_HEADS)], ...] | None = Field(
        default=None,
        min_length=1,
        description="numbers of the heads that travel, from 0; null: all of them. With one of them a row "
        "stays a token",
    )

    @model_validator(mode="after")
    def _are_heads(self) -> Self:
        wrong = [head for head in self.keep or () if head >= self.count]
        if wrong:
            raise ValueError(
                f"keep: there is no head {wrong[0]} among {self.count}, 0 to {self.count - 1}"
            )
        if len(set(self.keep or ())) != len(self.keep or ()):
            raise ValueError("keep: each head may be listed once")
        return self


class HeadsPreprocessor(Stage):
    """Splits rows into `count` heads and keeps some of them, in ascending order."""

    def __init__(self, count: int, keep: tuple[int, ...] | None = None) -> None:
        self._count = count
        self._kept = tuple(range(count)) if keep is None else tuple(sorted(keep))
        self.rows_each = len(self._kept)
        self.encoding = f"heads.{count}"
        if self.rows_each < count:
            self.encoding += f".keep{sum(1 << head for head in self._kept):x}"

    def staged(
        self, shape: tuple[int, ...], dtype: torch.dtype
    ) -> tuple[tuple[int, ...], torch.dtype]:
        width = rows_and_width(shape)[1]
        if width % self._count:
            raise PacketError(
                f"heads: rows of {width} do not divide into {self._count} heads; set count to a divisor of "
                f"{width}"
            )
        made = (*shape[:-1], width // self._count)
        if self.rows_each > 1:
            made = (*shape[:-1], self.rows_each, width // self._count)
        if len(made) > MAX_NDIM:
            raise PacketError(f"heads: {list(made)} has more than {MAX_NDIM} dimensions")
        return made, dtype

    def apply(self, tensor: torch.Tensor) -> Staged:
        shape, _ = self.staged(tuple(tensor.shape), tensor.dtype)
        heads = tensor.detach().reshape(*tensor.shape[:-1], self._count, shape[-1])
        first, last = self._kept[0], self._kept[-1]
        if last - first + 1 == self.rows_each:
            kept = heads.narrow(-2, first, self.rows_each)
        else:
            kept = heads.index_select(-2, torch.tensor(self._kept, device=tensor.device))
        return Staged(kept.reshape(shape))

    def target(self, tensor: torch.Tensor, encoded: Encoded) -> torch.Tensor:
        del encoded
        return self.apply(tensor).tensor


_ENCODING = re.compile(r"heads\.([1-9][0-9]{0,2})(?:\.keep([1-9a-f][0-9a-f]{0,63}))?")


def _build(options: HeadsOptions) -> Preprocessor:
    return HeadsPreprocessor(options.count, options.keep)


def _decoder(encoding: str) -> Preprocessor | None:
    found = _ENCODING.fullmatch(encoding)
    if found is None or int(found[1]) > MOST_HEADS:
        return None
    count, bits = int(found[1]), int(found[2] or "0", 16)
    keep = tuple(head for head in range(count) if bits >> head & 1)
    if bits >> count:
        return None
    return HeadsPreprocessor(count, keep or None)


plugin = KernelPlugin(
    name="heads",
    summary="each row split into those of its attention heads",
    options=HeadsOptions,
    build=_build,
    decoder=_decoder,
    role=Role.STAGE,
)
