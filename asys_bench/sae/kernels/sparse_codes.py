"""The (row, feature, value) triples of a batch whose activations are mostly zero.

With K of F features active per row, decoding and the weight gradients cost B K D instead of B F D
multiplications; `sparse_kernels` has the products. Shapes: B rows, F features, N pairs in all.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import torch


@dataclass(frozen=True, slots=True)
class SparseCodes:
    """Row-major pairs (CSR); features ascend within a row."""

    offset_B: torch.Tensor
    """int32[B + 1]: where each row's pairs begin, and N."""
    feature_N: torch.Tensor
    """int32[N]."""
    value_N: torch.Tensor
    """float[N]: whatever the pairs carry; as a kernel finds them, exact pre-activations."""
    d_sae: int

    @property
    def rows(self) -> int:
        return len(self.offset_B) - 1

    @property
    def row_N(self) -> torch.Tensor:
        """int64[N]: the batch row of each pair."""
        return self.of_row(torch.arange(self.rows, device=self.offset_B.device))

    def of_row(self, quantity_B: torch.Tensor) -> torch.Tensor:
        """A quantity of each row, per pair."""
        return torch.repeat_interleave(quantity_B, self.offset_B.diff())

    def of_feature(self, quantity_F: torch.Tensor) -> torch.Tensor:
        """A quantity of each feature, per pair."""
        return quantity_F.index_select(0, self.feature_N)

    def with_values(self, value_N: torch.Tensor) -> SparseCodes:
        return replace(self, value_N=value_N)

    def kept(self, mask_N: torch.Tensor) -> SparseCodes:
        """Only the pairs where `mask_N` holds."""
        before = torch.zeros(len(mask_N) + 1, dtype=torch.int32, device=mask_N.device)
        torch.cumsum(mask_N, 0, dtype=torch.int32, out=before[1:])
        return SparseCodes(
            before.index_select(0, self.offset_B),
            self.feature_N[mask_N],
            self.value_N[mask_N],
            self.d_sae,
        )

    def dense(self) -> torch.Tensor:
        """acts_BF."""
        out_BF = self.value_N.new_zeros(self.rows, self.d_sae)
        out_BF[self.row_N, self.feature_N.long()] = self.value_N
        return out_BF


@dataclass(frozen=True, slots=True)
class FeatureMajor:
    """The pairs of a batch grouped by feature, in the order of their rows."""

    offset_F: torch.Tensor
    """int32[F + 1]: where each feature's group begins, and N."""
    order_N: torch.Tensor
    """int32[N]: places in the row-major arrays."""
    row_N: torch.Tensor
    """int32[N]: the batch row of each."""


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """What decoding a batch gave. The tensors are overwritten by the next step."""

    error_B: torch.Tensor
    """||x_hat - x||^2 of each row; [M, B] for nested prefixes."""
    gradient_BD: torch.Tensor
    """d loss / d x_hat; [M, B, D] for nested prefixes, each with those of all wider ones added."""
    code_gradient_N: torch.Tensor
    """d loss / d activation of each pair."""


T = TypeVar("T")


class WorkThreads:
    """Threads that share one training step: they run the parts of a call side by side.

    torch's own threads spin at their barriers, which on a machine that also runs the host costs the
    host more than it gives the trainer. These sleep between calls, and inside them torch works
    single-threaded, so that matrix products need no barrier. With one thread the caller runs all.
    """

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
