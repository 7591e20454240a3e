"""The processes that train one SAE together, as a training step sees them.

Alone, nothing is sent and every method gives back what it got: a training of one process has the bits
that it had without this file. In a group (`sae.group`) each rank has a part of the features
(`split: latents`) or of each batch's rows (`split: rows`).

Every rank calls the same methods in the same order, and gets the same bits from each. Whatever decides
which method comes next (is the loss finite, is a feature dead) must therefore come from one of them.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

Split = Literal["latents", "rows"]


class GroupError(RuntimeError):
    """A rank of the group has ended, hangs or failed; none of them can go on."""


class Ranks:
    """See the module docstring. Rank 0 draws, writes checkpoints and has the rows."""

    rank: int = 0
    size: int = 1
    split: Split | None = None

    @property
    def has_all_latents(self) -> bool:
        """Each rank has every feature."""
        return self.split != "latents"

    @property
    def has_all_rows(self) -> bool:
        """Each rank has every row of a batch."""
        return self.split != "rows"

    def features_of(self, d_sae: int, rank: int | None = None) -> slice:
        """The features of a rank (this one), of `d_sae`."""
        if self.has_all_latents:
            return slice(0, d_sae)
        rank = self.rank if rank is None else rank
        return slice(d_sae * rank // self.size, d_sae * (rank + 1) // self.size)

    def rows_of(self, rows: int, rank: int | None = None) -> slice:
        """The rows of a rank (this one), of a batch of `rows`."""
        if self.has_all_rows:
            return slice(0, rows)
        rank = self.rank if rank is None else rank
        return slice(rows * rank // self.size, rows * (rank + 1) // self.size)

    def over_latents(self, part: torch.Tensor) -> torch.Tensor:
        """The sum of what each rank's features add; differentiable by this rank's part."""
        return part

    def number_over_latents(self, value: float) -> float:
        """As `over_latents`."""
        return value

    def every_latent(self, quantity_F: torch.Tensor) -> torch.Tensor:
        """What the ranks have of their features, on end, in the order of the features."""
        return quantity_F

    def among_best(self, value_BK: torch.Tensor, k: int) -> torch.Tensor | None:
        """bool[B, K]: which of this rank's candidates are among the k largest of each row over all
        ranks; of equal ones those of the first rank. None: all of them are.

        value_BK: the min(k, features of this rank) largest of each row.
        """
        return None

    def count_in_batch(self, value: int) -> int:
        """The sum of a number over the ranks' parts of a batch, or of the features."""
        return value

    def every_pair(self, value_N: torch.Tensor) -> tuple[torch.Tensor, int]:
        """(the ranks' values on end, where this rank's begin); of any length each."""
        return value_N, 0

    def every_number(self, value: float) -> list[float]:
        """The ranks' values, in their order."""
        return [value]

    def sum_over_rows_(self, tensors: list[torch.Tensor]) -> None:
        """Each tensor becomes its sum over the ranks' rows."""

    def every_row(self, quantity_B: torch.Tensor) -> torch.Tensor:
        """What the ranks have of their rows, on end."""
        return quantity_B

    def rows_at(self, rows_BD: torch.Tensor, index_M: torch.Tensor) -> torch.Tensor:
        """Rows of the whole batch by their place in it."""
        return rows_BD[index_M]


ALONE = Ranks()


class Collectives(Ranks):
    """A group of ranks over four operations, which a subclass has. All of them wait for every rank."""

    def __init__(self, rank: int, size: int, split: Split) -> None:
        self.rank, self.size, self.split = rank, size, split

    def sum_(self, tensor: torch.Tensor) -> None:
        """`tensor` (contiguous) becomes the sum over the ranks."""
        raise NotImplementedError

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Every rank's tensor, in order; all of one shape."""
        raise NotImplementedError

    def send(self, tensor: torch.Tensor, to: int) -> None:
        """To one rank, which calls `receive`."""
        raise NotImplementedError

    def receive(self, tensor: torch.Tensor, source: int) -> None:
        """Fill `tensor` (contiguous) with what one rank sends."""
        raise NotImplementedError

    def broadcast_(self, tensor: torch.Tensor) -> None:
        """`tensor` (contiguous) becomes that of rank 0."""
        raise NotImplementedError

    # What a step asks for.

    def over_latents(self, part: torch.Tensor) -> torch.Tensor:
        if self.has_all_latents:
            return part
        if part.requires_grad:
            whole: torch.Tensor = _SumOfParts.apply(part, self)  # type: ignore[no-untyped-call]
            return whole
        return self._summed(part)

    def number_over_latents(self, value: float) -> float:
        return value if self.has_all_latents else self._number(value)

    def every_latent(self, quantity_F: torch.Tensor) -> torch.Tensor:
        return quantity_F if self.has_all_latents else self._on_end(quantity_F)[0]

    def among_best(self, value_BK: torch.Tensor, k: int) -> torch.Tensor | None:
        if self.has_all_latents:
            return None
        rows, own = value_BK.shape
        padded_Bk = value_BK.new_full((rows, k), float("-inf"))
        padded_Bk[:, :own] = value_BK
        all_BN = torch.cat(self.gather(padded_Bk), 1)
        least_B1 = torch.topk(all_BN, k, dim=1, sorted=False).values.amin(1, keepdim=True)
        kept_BK = value_BK >= least_B1
        surplus_B = (all_BN >= least_B1).sum(1) > k
        if bool(surplus_B.any()):  # several are equal to the smallest: the last ones go
            equal_BN = all_BN == least_B1
            room_B1 = k - (all_BN > least_B1).sum(1, keepdim=True)
            taken_BN = equal_BN & (equal_BN.cumsum(1) <= room_B1)
            first = self.rank * k
            kept_BK = (value_BK > least_B1) | taken_BN[:, first : first + own]
        return kept_BK

    def count_in_batch(self, value: int) -> int:
        return round(self._number(float(value)))

    def every_pair(self, value_N: torch.Tensor) -> tuple[torch.Tensor, int]:
        return self._on_end(value_N)

    def every_number(self, value: float) -> list[float]:
        return [float(one) for one in self.gather(torch.tensor([value], dtype=torch.float64))]

    def sum_over_rows_(self, tensors: list[torch.Tensor]) -> None:
        if not self.has_all_rows:
            for tensor in tensors:
                self.sum_(tensor)

    def every_row(self, quantity_B: torch.Tensor) -> torch.Tensor:
        return quantity_B if self.has_all_rows else self._on_end(quantity_B)[0]

    def rows_at(self, rows_BD: torch.Tensor, index_M: torch.Tensor) -> torch.Tensor:
        if self.has_all_rows:
            return rows_BD[index_M]
        counts = self._counts(len(rows_BD))
        first = sum(counts[: self.rank])
        here_M = (index_M >= first) & (index_M < first + len(rows_BD))
        found_MD = rows_BD.new_zeros(len(index_M), rows_BD.shape[1])
        found_MD[here_M] = rows_BD[index_M[here_M] - first]
        self.sum_(found_MD)
        return found_MD

    # From the four operations.

    def _summed(self, part: torch.Tensor) -> torch.Tensor:
        whole = part.detach().clone(memory_format=torch.contiguous_format)
        self.sum_(whole)
        return whole

    def _number(self, value: float) -> float:
        one = torch.tensor([value], dtype=torch.float64)
        self.sum_(one)
        return float(one)

    def _counts(self, own: int) -> list[int]:
        return [int(one) for one in self.gather(torch.tensor([own], dtype=torch.int64))]

    def _on_end(self, own: torch.Tensor) -> tuple[torch.Tensor, int]:
        counts = self._counts(len(own))
        padded = own.new_zeros((max(counts), *own.shape[1:]))
        padded[: len(own)] = own
        parts = self.gather(padded)
        every = [part[:count] for part, count in zip(parts, counts, strict=True)]
        return torch.cat(every), sum(counts[: self.rank])


class _SumOfParts(torch.autograd.Function):
    """The sum over ranks of their features' parts. Each rank has the whole loss, so what flows back to
    its part is the gradient of the sum."""

    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, ranks: Collectives) -> torch.Tensor:
        return ranks._summed(part)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None
