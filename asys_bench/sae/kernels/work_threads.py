"""Threads that share one training step.

torch's own team spins at its barriers, which on a machine that also runs the host costs the host
more than it gives the trainer. These threads sleep between calls, and inside them torch works
single-threaded, so that matrix products need no barrier at all.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


class WorkThreads:
    """Runs the parts of a call side by side; with one thread, in the caller."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = (
            ThreadPoolExecutor(count, "sae", initializer=_enter_thread) if count > 1 else None
        )

    def run(self, parts: Sequence[Callable[[], T]]) -> list[T]:
        """Every part's result, in order. The first exception is raised after all have ended."""
        if self._pool is None or len(parts) < 2:
            return [part() for part in parts]
        futures = [self._pool.submit(part) for part in parts]
        for future in futures:
            future.exception()
        return [future.result() for future in futures]

    def split(self, count: int, least: int = 1) -> list[tuple[int, int]]:
        """`[0, count)` as one contiguous range per thread, none shorter than `least`."""
        parts = max(1, min(self.count, count // max(1, least)))
        edges = [count * index // parts for index in range(parts + 1)]
        return list(itertools.pairwise(edges))


def _enter_thread() -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
