"""Packets that hold a part of a tensor: a rank's shard of a parameter, or some rows of it at a time.

The name of such an encoding is `part+<encoding>`, or `part(16:32/64)+<encoding>` where the rows themselves
are parts: columns 16 to 32 of 64. The payload is that of the encoding. Which rows it holds is in the
header's parameters, as `leading` has them: of the whole tensor, and the number of the first row here. Without
leading dimensions the place is not known. What a reader gets is rows of the whole tensor: `rows` and `grid`
count through it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np
import torch

from asys_bench.contracts.encodings.leading import PARAMS, UNKNOWN, leading_of, pack_leading
from asys_bench.contracts.packet import ActivationPacket, PacketError
from asys_bench.contracts.preprocessor import Encoded, Positions, Preprocessor, rows_and_width

PART = "part"
_NAME = re.compile(rf"{PART}(?:\((\d{{1,10}}):(\d{{1,10}})/(\d{{1,10}})\))?\+(.+)", re.DOTALL)
UNKNOWN_PLACE = PARAMS.pack(0, 0, UNKNOWN, 0, 0, 0)
"""Parameters of a packet whose rows are not one run of rows of the whole tensor."""

Columns = tuple[int, int, int]
"""(first column, one past the last, columns of the whole tensor)"""


def part_name(encoding: str, columns: Columns | None = None) -> str:
    """What the encoding of a part is called."""
    inside = "" if columns is None else f"({columns[0]}:{columns[1]}/{columns[2]})"
    return f"{PART}{inside}+{encoding}"


def place_of(leading: tuple[int, ...], first: int) -> bytes:
    """The header's parameters of rows from `first` on of a tensor with these leading dimensions."""
    total = prod(leading)
    return UNKNOWN_PLACE if total > 0xFFFFFFFF else pack_leading(leading, total, first)


@dataclass(frozen=True)
class Part:
    """What a rank holds of a parameter.

    columns: where its rows are parts of rows. place: the header's parameters of the whole shard.
    leading, first: of the whole tensor, and the first row here; None: not one run of rows.
    """

    columns: Columns | None
    leading: tuple[int, ...]
    first: int | None

    @property
    def place(self) -> bytes:
        return self.place_from(0)

    def place_from(self, row: int) -> bytes:
        """Of rows from `row` of this part on."""
        return UNKNOWN_PLACE if self.first is None else place_of(self.leading, self.first + row)


class PartDecoder(Preprocessor):
    """The decoder around that of the rows themselves."""

    def __init__(self, inner: Preprocessor, columns: Columns | None) -> None:
        self._inner = inner
        self.columns = columns
        self.encoding = part_name(inner.encoding, columns)
        self.rows_each = inner.rows_each

    def payload_bytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        return self._inner.payload_bytes(shape, dtype)

    def encode(self, tensor: torch.Tensor, out: memoryview) -> Encoded:
        raise PacketError(f"{self.encoding} is written by hooks alone")

    def decode(self, packet: ActivationPacket) -> torch.Tensor:
        return self._inner.decode(packet)

    def max_error(self, target: torch.Tensor) -> torch.Tensor:
        return self._inner.max_error(target)

    def rows(self, packet: ActivationPacket) -> Positions | None:
        if (found := self._place(packet)) is None:
            return None
        first, leading = found
        each, rows = self.rows_each, rows_and_width(packet.shape)[0]
        if rows > packet.payload.nbytes:  # untrusted: it sizes an array
            raise PacketError(f"{self.encoding}: {rows} rows in {packet.payload.nbytes} bytes")
        if first * each + rows > prod(leading) * each:
            raise PacketError(f"{self.encoding}: rows {first} + {rows} of {list(leading)}")
        return np.arange(first * each, first * each + rows, dtype=np.int64)

    def grid(self, packet: ActivationPacket) -> tuple[int, ...]:
        if (found := self._place(packet)) is None:
            return ()
        return (*found[1], *((self.rows_each,) if self.rows_each > 1 else ()))

    def _place(self, packet: ActivationPacket) -> tuple[int, tuple[int, ...]] | None:
        """(first row, leading dimensions of the whole tensor)."""
        total, first, count, *_ = PARAMS.unpack(packet.params)
        if not total or count > 3 or not rows_and_width(packet.shape)[1]:
            return None
        leading = leading_of(packet.params)
        if not leading:
            raise PacketError(
                f"{self.encoding}: {total} rows do not fill the dimensions of {packet.params.hex()}"
            )
        return first, leading


def part_decoder(encoding: str, decoder: Callable[[str], Preprocessor]) -> PartDecoder | None:
    """The decoder of an interned name of a part, None where it is none; `decoder` of what it is made of.

    Raises:
        PacketError: as `decoder` does.
    """
    found = _NAME.fullmatch(encoding)
    if found is None:
        return None
    *columns, inner = found.groups()
    known = None if columns[0] is None else (int(columns[0]), int(columns[1]), int(columns[2]))
    return PartDecoder(decoder(inner), known)
