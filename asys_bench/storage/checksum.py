"""CRC-32C of whole files."""

from __future__ import annotations

from pathlib import Path

from crc32c import crc32c

_PIECE_BYTES = 4 << 20


def file_crc32c(path: Path) -> int:
    """CRC-32C (Castagnoli) of the file's bytes.

    Raises:
        OSError: it cannot be read.
    """
    value = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            value = crc32c(piece, value)
    return int(value)
