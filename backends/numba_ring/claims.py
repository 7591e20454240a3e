"""Where compiled code writes claims: a few words per packet, reused from lease to lease."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from asys_bench.backends.numba_ring.core.consumer_core import CLAIM_WORDS

_SPARES = 8
_ROWS = 64


class ClaimBuffer:
    """Room for the records of `capacity` claims (see `consumer_core`)."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._records = np.empty((capacity, CLAIM_WORDS), np.int64)
        self.address = int(self._records.__array_interface__["data"][0])

    def rows(self, count: int) -> npt.NDArray[np.int64]:
        """(seq, word, payload offset, payload bytes, shard) of the first `count` claims."""
        return self._records[:count]


class ClaimBuffers:
    """Hands out buffers and takes them back."""

    def __init__(self) -> None:
        self._spares: list[ClaimBuffer] = []

    def take(self, capacity: int) -> ClaimBuffer:
        if self._spares and capacity <= _ROWS:
            return self._spares.pop()
        return ClaimBuffer(max(capacity, _ROWS))

    def give(self, buffer: ClaimBuffer) -> None:
        if len(self._spares) < _SPARES and buffer.capacity == _ROWS:
            self._spares.append(buffer)
