"""Packets that say which of their rows are tokens, for the reader to leave the others out.

On a device nobody can wait for a mask, so the rows of a text travel whole, with the mask behind them.
The name of such an encoding is `padded+<encoding>`, and its payload::

    <payload of the encoding> | u8 real[n] (1: a token, 0: padding) | u32 n, little-endian

with n the rows of the captured tensor (each of which may have become several: `rows_each`). What a reader
gets is what a host on the CPU would have sent:
the rows of tokens [k, D] in order, or the whole tensor where nothing is padding.
"""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from asys_bench.contracts.packet import ActivationPacket, PacketError
from asys_bench.contracts.preprocessor import Encoded, Positions, Preprocessor, rows_and_width

PADDED = "padded"
_COUNT = struct.Struct("<I")


def beside_bytes(rows: int) -> int:
    """What stands behind the payload of a packet of `rows` rows."""
    return rows + _COUNT.size


def write_count(end: memoryview, rows: int) -> None:
    """Write n into `end`, the last bytes of a payload."""
    _COUNT.pack_into(end, len(end) - _COUNT.size, rows)


class Padded(Preprocessor):
    """The decoder around that of the rows themselves."""

    def __init__(self, inner: Preprocessor) -> None:
        self._inner = inner
        self.encoding = f"{PADDED}+{inner.encoding}"
        self.rows_each = inner.rows_each

    def payload_bytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        return self._inner.payload_bytes(shape, dtype) + beside_bytes(rows_and_width(shape)[0])

    def encode(self, tensor: torch.Tensor, out: memoryview) -> Encoded:
        raise PacketError(f"{self.encoding} is written on devices alone")

    def decode(self, packet: ActivationPacket) -> torch.Tensor:
        packet, real = self._split(packet)
        tensor = self._inner.decode(packet)
        if bool(real.all()):
            return tensor
        rows = self._inner.rows(packet)
        kept = np.flatnonzero(real if rows is None else real[rows])
        rows_ND = tensor.reshape(rows_and_width(tensor.shape))
        if len(rows_ND) != (len(real) if rows is None else len(rows)):
            raise PacketError(f"{self.encoding}: {len(rows_ND)} rows and a mask of {len(real)}")
        return rows_ND.index_select(0, torch.from_numpy(kept))

    def target(self, tensor: torch.Tensor, encoded: Encoded) -> torch.Tensor:
        return self._inner.target(tensor, encoded)

    def max_error(self, target: torch.Tensor) -> torch.Tensor:
        return self._inner.max_error(target)

    def rows(self, packet: ActivationPacket) -> Positions | None:
        """As the inner one's, counted among the tokens."""
        packet, real = self._split(packet)
        rows = self._inner.rows(packet)
        if rows is None or bool(real.all()):
            return rows
        kept: Positions = (np.cumsum(real) - 1)[rows[real[rows]]].astype(np.int64)
        return kept

    def grid(self, packet: ActivationPacket) -> tuple[int, ...]:
        packet, real = self._split(packet)
        if bool(real.all()):
            return self._inner.grid(packet)
        each = self.rows_each
        return (int(real.sum()),) if each == 1 else (int(real.sum()) // each, each)

    def _split(self, packet: ActivationPacket) -> tuple[ActivationPacket, npt.NDArray[np.bool_]]:
        """The inner packet, and its mask, bool for each row that `rows` counts. Raises PacketError: the sizes
        do not add up."""
        payload = packet.payload
        if payload.nbytes < _COUNT.size:
            raise PacketError(f"{self.encoding}: {payload.nbytes} bytes hold no count of rows")
        (rows,) = _COUNT.unpack_from(payload, payload.nbytes - _COUNT.size)
        end = payload.nbytes - beside_bytes(rows)
        sampled = self._inner.rows(packet)
        if sampled is None:
            fits = rows * self.rows_each == rows_and_width(packet.shape)[0]
        else:
            fits = not len(sampled) or int(sampled[-1]) < rows * self.rows_each
        if end < 0 or not fits:
            raise PacketError(
                f"{self.encoding}: a mask of {rows} rows behind {list(packet.shape)} in "
                f"{payload.nbytes} bytes"
            )
        real = np.frombuffer(payload, np.uint8, rows, end) != 0
        real = real if self.rows_each == 1 else np.repeat(real, self.rows_each)
        return replace(packet, payload=payload[:end]), real
