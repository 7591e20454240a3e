"""A shuffle reservoir: rows come in time order, batches leave in random order.

Training goes through the reservoir in passes. A pass is a random permutation of the rows present; a
batch is its next rows, so no row is drawn twice within a pass. New rows first fill free slots
(joining the current pass at a random place), then replace rows that this pass has already used, in
the order they were used, and only then random unused ones. With a budget of p trained rows per
incoming row a row is so used p times on average, and with p = 1 nearly every row exactly once.
"""

from __future__ import annotations

import torch

from asys_bench.sae.state import StateDict, number_of, tensor_of


class ShuffleBuffer:
    """At most `capacity` rows float32[D] with their weights; all randomness from `seed`.

    Memory: capacity x (4 D + 12) bytes, taken at once.
    """

    def __init__(self, capacity: int, d_in: int, seed: int) -> None:
        self.capacity = capacity
        self._rows_CD = torch.zeros(capacity, d_in)
        self._weight_C = torch.ones(capacity)
        self._order_C = torch.zeros(capacity, dtype=torch.int64)
        self._filled = self._cursor = self._evicted = 0
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self._filled

    @property
    def rows(self) -> torch.Tensor:
        """View of the rows present, float32[filled, D], in no meaningful order."""
        return self._rows_CD[: self._filled]

    def add(self, rows_ND: torch.Tensor, weight_N: torch.Tensor) -> None:
        """Copy rows in. Of more than `capacity` rows only the last `capacity` stay."""
        rows_ND, weight_N = rows_ND[-self.capacity :], weight_N[-self.capacity :]
        replaced = max(0, len(rows_ND) - (self.capacity - self._filled))
        if replaced:
            self._replace(rows_ND[:replaced], weight_N[:replaced])
        if replaced < len(rows_ND):
            self._append(rows_ND[replaced:], weight_N[replaced:])

    def sample(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The next `count` rows of the pass (starting new passes as needed): rows, weights; copies.

        Raises:
            ValueError: `count` is not 1..rows present.
        """
        if not 1 <= count <= self._filled:
            raise ValueError(f"cannot draw {count} of {self._filled} rows")
        left = self._filled - self._cursor
        if left >= count:
            slots = self._take(count)
        else:
            head = self._take(left).clone()
            self._new_pass()
            slots = torch.cat([head, self._take(count - left)])
        return self._rows_CD[slots], self._weight_C[slots]

    def _append(self, rows_ND: torch.Tensor, weight_N: torch.Tensor) -> None:
        first, self._filled = self._filled, self._filled + len(rows_ND)
        self._rows_CD[first : self._filled] = rows_ND
        self._weight_C[first : self._filled] = weight_N
        self._order_C[first : self._filled] = torch.arange(first, self._filled)
        waiting = self._order_C[self._cursor : self._filled]
        shuffle = torch.randperm(len(waiting), generator=self._generator)
        self._order_C[self._cursor : self._filled] = waiting[shuffle]

    def _replace(self, rows_ND: torch.Tensor, weight_N: torch.Tensor) -> None:
        count, replaced = len(rows_ND), self._evicted
        used = self._order_C[replaced : self._cursor][:count]
        self._evicted += len(used)
        unused = self._order_C[self._cursor : self._filled]
        if len(used) < count:
            shuffle = torch.randperm(len(unused), generator=self._generator)
            unused = unused[shuffle]
        unused = unused[: count - len(used)]
        # A chunk as large as the buffer also takes the slots replaced earlier in this pass.
        rest = self._order_C[: count - len(used) - len(unused)]
        slots = torch.cat([used, unused, rest])
        self._rows_CD[slots] = rows_ND
        self._weight_C[slots] = weight_N

    def _take(self, count: int) -> torch.Tensor:
        slots = self._order_C[self._cursor : self._cursor + count]
        self._cursor += count
        return slots

    def _new_pass(self) -> None:
        self._order_C[: self._filled] = torch.randperm(self._filled, generator=self._generator)
        self._cursor = self._evicted = 0

    def state_dict(self) -> StateDict:
        return {
            "rows": self.rows,
            "weight": self._weight_C[: self._filled],
            "order": self._order_C[: self._filled],
            "cursor": self._cursor,
            "evicted": self._evicted,
            "rng": self._generator.get_state(),
        }

    def load_state_dict(self, state: StateDict) -> None:
        """Raises ValueError when the state is not of a buffer of this capacity and width."""
        rows_ND, order_N = tensor_of(state, "rows"), tensor_of(state, "order")
        filled, cursor = len(rows_ND), int(number_of(state, "cursor"))
        if filled > self.capacity or rows_ND.shape[1:] != self._rows_CD.shape[1:]:
            raise ValueError(
                f"rows {tuple(rows_ND.shape)} do not fit a buffer of {tuple(self._rows_CD.shape)}"
            )
        evicted = int(number_of(state, "evicted"))
        if not 0 <= evicted <= cursor <= filled or not torch.equal(
            order_N.sort().values, torch.arange(filled)
        ):
            raise ValueError("the buffer's order is not a permutation of its rows")
        self._rows_CD[:filled] = rows_ND
        self._weight_C[:filled] = tensor_of(state, "weight")
        self._order_C[:filled] = order_N
        self._filled, self._cursor, self._evicted = filled, cursor, evicted
        self._generator.set_state(tensor_of(state, "rng"))
