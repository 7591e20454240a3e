"""Some rows (tokens) of each tensor: a share, a fixed number, or every n-th.

A tensor [..., D] of N rows becomes [n, D]: the leading dimensions are flattened, rows stay in order.
Scalars and tensors of one dimension have nothing to choose from and travel whole. The 16 bytes of
encoding parameters hold N, the number of the draw and the tensor's leading dimensions; together with the
rule in the encoding's name they give a consumer the position of each row (`rows`) in them (`grid`), which
archives record. `Encoded.row_rate` is the probability that a row was kept, for weights that keep means
unbiased. Rows are copied (or encoded, in a chain) from where they lie: nothing else is read.
"""

from __future__ import annotations

import struct
from math import prod

import torch

from asys_bench.contracts.packet import ActivationPacket, PacketError
from asys_bench.contracts.preprocessor import (
    Encoded,
    Positions,
    RowSampler,
    Selection,
    rows_and_width,
    take_rows,
)
from asys_bench.kernels.identity.kernel import IMPLEMENTATIONS
from asys_bench.kernels.token_sample.rule import MAX_ROWS, Rule

PARAMS = struct.Struct("<IIBxHHH")
"""Rows of the captured tensor, number of the draw; how many leading dimensions follow the first, and
these: three of 16 bits, or one of 32 bits in two words. With more or larger ones they are left out."""
_NO_GRID = 255


def pack_params(shape: tuple[int, ...], total: int, draw: int) -> bytes:
    """For draw number `draw` from a tensor of `shape` with `total` rows (below 2^31)."""
    inner = shape[1:-1]
    if len(inner) == 1:
        low, high = inner[0] & 0xFFFF, inner[0] >> 16
        return PARAMS.pack(total, draw, 1, low, high, 0)
    if len(inner) > 3 or max(inner, default=0) > 0xFFFF:
        return PARAMS.pack(total, draw, _NO_GRID, 0, 0, 0)
    return PARAMS.pack(total, draw, len(inner), *inner, *(0,) * (3 - len(inner)))


def grid_of(params: bytes) -> tuple[int, ...]:
    """The leading dimensions; () where they were left out or do not fit the number of rows."""
    total, _, count, *words = PARAMS.unpack(params)
    if count > 3:
        return ()
    inner = (words[0] | words[1] << 16,) if count == 1 else tuple(words[:count])
    each = prod(inner)
    return (total // each, *inner) if each and total % each == 0 else ()


class TokenSamplePreprocessor(RowSampler):
    """Keeps the rows that `rule` chooses; `implementation` None takes the best one here."""

    def __init__(self, rule: Rule, implementation: str | None = None) -> None:
        self.encoding = f"token_sample.{rule.name}"
        self._rule = rule
        self._draw = 0
        self._same: tuple[tuple[int, ...], Selection] | None = None
        """Shape and selection of the last call, where every draw is the same."""
        self._write = IMPLEMENTATIONS.writer(implementation)

    def staged(
        self, shape: tuple[int, ...], dtype: torch.dtype
    ) -> tuple[tuple[int, ...], torch.dtype]:
        if len(shape) < 2:
            return shape, dtype
        rows, width = rows_and_width(shape)
        return (self._rule.most(rows), width), dtype

    def select(self, shape: tuple[int, ...]) -> Selection:
        if len(shape) < 2:
            return Selection(None)
        total = rows_and_width(shape)[0]
        if self._same is not None and self._same[0] == shape:
            return self._same[1]
        rule, draw = self._rule, self._draw
        selection = Selection(
            rule.positions(total, draw), pack_params(tuple(shape), total, draw), rule.rate(total)
        )
        if rule.every is None:
            self._draw = (draw + 1) & 0xFFFFFFFF
        else:
            self._same = tuple(shape), selection
        return selection

    def encode(self, tensor: torch.Tensor, out: memoryview) -> Encoded:
        positions, params, row_rate = self.select(tensor.shape)
        nbytes = self._write(tensor, out, positions)
        shape = tuple(tensor.shape)
        if positions is not None:
            shape = (len(positions), shape[-1])
        return Encoded(nbytes, tensor.dtype, shape, params, row_rate)

    def target(self, tensor: torch.Tensor, encoded: Encoded) -> torch.Tensor:
        if tensor.dim() < 2:
            return tensor
        total, draw, *_ = PARAMS.unpack(encoded.params)
        return take_rows(tensor, self._rule.positions(total, draw))

    def rows(self, packet: ActivationPacket) -> Positions | None:
        if len(packet.shape) != 2 or packet.shape[1] == 0:
            return None
        total, draw, *_ = PARAMS.unpack(packet.params)
        kept = packet.shape[0]
        if total < MAX_ROWS and kept <= packet.payload.nbytes:  # untrusted: it sizes an array
            if not self._rule.most(total) - 1 <= kept <= self._rule.most(total):
                raise PacketError(f"{self.encoding} does not keep {kept} of {total} rows")
            positions = self._rule.positions(total, draw)
            if len(positions) == kept:
                return positions
        raise PacketError(
            f"{self.encoding}: {kept} rows in {packet.payload.nbytes} bytes are not draw {draw} of "
            f"{total} rows"
        )

    def grid(self, packet: ActivationPacket) -> tuple[int, ...]:
        return packet.shape[:-1] if self.rows(packet) is None else grid_of(packet.params)
