"""CRC-32C of whole files."""

from __future__ import annotations

import os
from pathlib import Path

from crc32c import crc32c

from asys_bench.system.files.below import open_file

_PIECE_BYTES = 4 << 20


def file_crc32c(path: Path) -> int:
    """CRC-32C (Castagnoli) of the file's bytes.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    value = 0
    with os.fdopen(open_file(path), "rb") as file:
        while piece := file.read(_PIECE_BYTES):
            value = crc32c(piece, value)
    return int(value)
