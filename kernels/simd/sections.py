"""Geometry of payloads that hold more than one array, and the rows of a tensor as the torch references
see them."""

from __future__ import annotations

from math import prod

import torch

from asys_bench.contracts.packet import ActivationPacket, PacketError
from asys_bench.contracts.preprocessor import Positions, rows_and_width, take_rows

ALIGNMENT = 64
"""The second array of a payload starts at a multiple of this many bytes; the gap is zero."""
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def aligned(nbytes: int) -> int:
    """`nbytes` rounded up to the alignment."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def two_sections(first: int, second: int) -> int:
    """Bytes of a payload with two arrays; none at all when the second is empty."""
    return aligned(first) + second if second else 0


def refuse_non_float(encoding: str, dtype: torch.dtype) -> None:
    """
    Raises:
        PacketError: `dtype` is not one of FLOATS.
    """
    if dtype not in FLOATS:
        names = ", ".join(str(known).removeprefix("torch.") for known in FLOATS)
        raise PacketError(f"{encoding} carries {names}, got {dtype}; use identity for this hook")


def check_payload(encoding: str, packet: ActivationPacket, nbytes: int) -> None:
    """
    Raises:
        PacketError: the payload is not exactly `nbytes` long.
    """
    if packet.payload.nbytes != nbytes:
        raise PacketError(
            f"{encoding} of shape {packet.shape} takes {nbytes} bytes, "
            f"the payload has {packet.payload.nbytes}"
        )


def float_rows(
    encoding: str, tensor: torch.Tensor, positions: Positions | None = None
) -> torch.Tensor:
    """The (chosen) rows as float32 [rows, width].

    Raises:
        PacketError: a dtype that is not floating point, or a position past the last row.
    """
    refuse_non_float(encoding, tensor.dtype)
    if positions is not None:
        check_positions(positions, rows_and_width(tensor.shape)[0])
        tensor = take_rows(tensor, positions)
    return tensor.detach().to(torch.float32).reshape(rows_and_width(tensor.shape))


def check_positions(positions: Positions, rows: int) -> None:
    """
    Raises:
        PacketError: a position is not a row.
    """
    if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < rows:
        raise PacketError(f"row positions reach past the {rows} rows of the tensor")


def empty_or_refused(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor of an untrusted shape without elements.

    Raises:
        PacketError: torch cannot make it.
    """
    assert prod(shape) == 0
    try:
        return torch.empty(shape, dtype=dtype)
    except RuntimeError as error:
        raise PacketError(f"no tensor has shape {shape}: {error}") from error
