"""Some rows (tokens) of each tensor: a share, a fixed number, or every n-th.

A tensor [..., D] of N rows becomes [n, D]: the leading dimensions are flattened, rows stay in order.
Scalars and tensors of one dimension have nothing to choose from and travel whole. The 16 bytes of
encoding parameters hold N and the number of the draw, both uint64 little-endian; together with the
rule in the encoding's name they give a consumer the position of each row (`rows`), which archives
record. `Encoded.row_rate` is the probability that a row was kept, for weights that keep means
unbiased. Rows are copied (or encoded, in a chain) from where they lie: nothing else is read.
"""

from __future__ import annotations

import struct

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

PARAMS = struct.Struct("<QQ")
"""Rows of the captured tensor, number of the draw."""


class TokenSamplePreprocessor(RowSampler):
    """Keeps the rows that `rule` chooses; `implementation` None takes the best one here."""

    def __init__(self, rule: Rule, implementation: str | None = None) -> None:
        self.encoding = f"token_sample.{rule.name}"
        self._rule = rule
        self._draw = 0
        self._same: tuple[int, Selection] | None = None
        """Rows and selection of the last call, where every draw is the same."""
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
        if self._same is not None and self._same[0] == total:
            return self._same[1]
        rule, draw = self._rule, self._draw
        selection = Selection(
            rule.positions(total, draw), PARAMS.pack(total, draw), rule.rate(total)
        )
        if rule.every is None:
            self._draw = draw + 1
        else:
            self._same = total, selection
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
        total, draw = PARAMS.unpack(encoded.params)
        return take_rows(tensor, self._rule.positions(total, draw))

    def rows(self, packet: ActivationPacket) -> Positions | None:
        if len(packet.shape) != 2 or packet.shape[1] == 0:
            return None
        total, draw = PARAMS.unpack(packet.params)
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
