"""The leading dimensions of a tensor in a header's 16 bytes of encoding parameters, little-endian::

    u32 rows of the tensor | u32 a number | u8 n | u8 0 | u16[3] sizes

sizes: of the leading dimensions but the first, which follows from the rows: n of up to three, or one of 32
bits in two words. n 255: there are more or larger ones, and they are left out.
"""

from __future__ import annotations

import struct
from math import prod

PARAMS = struct.Struct("<IIBxHHH")
UNKNOWN = 255


def pack_leading(leading: tuple[int, ...], total: int, number: int) -> bytes:
    """Of a tensor of `total` rows, below 2^32, with these leading dimensions."""
    inner = leading[1:]
    if len(inner) == 1:
        return PARAMS.pack(total, number, 1, inner[0] & 0xFFFF, inner[0] >> 16, 0)
    if len(inner) > 3 or max(inner, default=0) > 0xFFFF:
        return PARAMS.pack(total, number, UNKNOWN, 0, 0, 0)
    return PARAMS.pack(total, number, len(inner), *inner, *(0,) * (3 - len(inner)))


def leading_of(params: bytes) -> tuple[int, ...]:
    """The leading dimensions; () where they were left out or do not fit the number of rows."""
    total, _, count, *words = PARAMS.unpack(params)
    if count > 3:
        return ()
    inner = (words[0] | words[1] << 16,) if count == 1 else tuple(words[:count])
    each = prod(inner)
    return (total // each, *inner) if each and total % each == 0 else ()
