"""What a contender of the bus comparison is, and the payloads that it moves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

CAPACITY_BYTES = 64 << 20
BATCH = 64
"""Packets a pull, a put or a get of those that have batches."""


def sources(nbytes: int, pool_bytes: int) -> np.ndarray:
    """uint64[rows, words] of random payloads, `pool_bytes` in all, at least two rows."""
    rows = max(2, pool_bytes // nbytes)
    return np.random.default_rng(1).integers(0, 2**63, (rows, nbytes // 8), dtype=np.uint64)


def total(buffer: Any) -> int:
    """Read every byte."""
    return int(np.frombuffer(buffer, np.uint64).sum())


class Contender(ABC):
    """One transport; `open` and `produce` run in the producer's process, the rest in the consumer's."""

    inherited = False
    """Its consumer is a fork of the producer's process instead of one that attaches."""
    groups = 1
    """Consumers that all read everything."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.capacity_bytes = max(CAPACITY_BYTES, 8 * nbytes)

    @abstractmethod
    def open(self) -> tuple[dict[str, Any], tuple[int, ...]]:
        """Create the transport; returns what a consumer needs: JSON data and descriptors."""

    def payloads(self, rows: np.ndarray) -> list[Any]:
        """The rows as `produce` takes them; not timed."""
        return list(rows)

    @abstractmethod
    def produce(self, payloads: list[Any], packets: int) -> None:
        """Send so many, the payloads in turn."""

    def attach(self, data: dict[str, Any], fds: tuple[int, ...], group: int) -> None:
        """Consumer side of `open`."""

    @abstractmethod
    def consume(self, packets: int) -> int:
        """Receive so many, reading all of them; returns how many came."""

    def close(self) -> None:
        """Producer side."""
