"""A text file that is only ever appended to, whole lines at a time, and survives SIGKILL."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from asys_bench.system.files import open_private

TAIL_BYTES = 64 * 1024


class AppendFile:
    """Each `write` reaches the kernel as one write: a SIGKILL loses at most the last block.

    A file left by a killed writer may end in half a line. That half is cut when the file is opened
    again, because half a number looks like a number.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = open_private(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        size = os.fstat(self._fd).st_size
        kept = _whole_lines(self._fd, size)
        if kept != size:
            os.ftruncate(self._fd, kept)
        self.resumed = kept > 0
        """An earlier writer left whole lines."""

    def write(self, text: str) -> None:
        """Append all of it or nothing; `text` must end in a newline.

        Raises:
            OSError: the disk is full or gone.
        """
        data, begin = text.encode(), os.fstat(self._fd).st_size
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._fd, begin)
            raise

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _whole_lines(fd: int, size: int) -> int:
    """Bytes up to and including the last newline."""
    end = size
    while end > 0:
        start = max(0, end - TAIL_BYTES)
        at = os.pread(fd, end - start, start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0
