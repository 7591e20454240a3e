"""A shuffle reservoir: rows come in time order, batches leave in random order.

Training goes through the reservoir in passes. A pass is a random permutation of the rows present; a
batch is its next rows, so no row is drawn twice within a pass. New rows first fill free slots
(joining the current pass at a random place), then replace rows that this pass has already used, in
the order they were used, and only then random unused ones. With a budget of p trained rows per
incoming row a row is so used p times on average, and with p = 1 nearly every row exactly once.

The host trains meanwhile: rows know the weights version they were captured at, and those older than
`max_age` versions are passed over, which leaves them to be replaced first.
"""

from __future__ import annotations

import torch

from asys_bench.sae.checkpoint.checkpoint_files import StateDict, number_of, tensor_of
from asys_bench.sae.training.intake import RowBlock


class ShuffleBuffer:
    """At most `capacity` rows float32[D] with what is known of them; all randomness from `seed`.

    max_age: versions behind the newest after which a row is not drawn any more. None: any age.
    Memory: capacity x (4 D + 28) bytes, taken at once.
    """

    def __init__(self, capacity: int, d_in: int, seed: int, max_age: int | None = None) -> None:
        self.capacity, self._d_in, self._max_age = capacity, d_in, max_age
        self._held = RowBlock.uniform(torch.zeros(capacity, d_in))
        self._order_C = torch.zeros(capacity, dtype=torch.int64)
        self._filled = self._cursor = self._evicted = 0
        self.newest_version = 0
        """Largest weights version of any row added."""
        self.changes = 0
        """Goes up when a row is added or dropped."""
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self._filled

    @property
    def rows(self) -> torch.Tensor:
        """View of the rows present, float32[filled, D], in no meaningful order."""
        return self._held.rows_ND[: self._filled]

    @property
    def weights(self) -> torch.Tensor:
        """View of what each row present stands for, float32[filled]."""
        return self._held.weight_N[: self._filled]

    def keep_only(self, wanted_N: torch.Tensor) -> int:
        """Drop the rows where `wanted_N` is False; how many. A new pass begins over the others."""
        dropped = self._filled - int(wanted_N.sum())
        if dropped:
            self.changes += 1
            kept = self._held[: self._filled][wanted_N]
            kept.copy_to(self._held, slice(0, len(kept)))
            self._filled = len(kept)
            self._new_pass()
        return dropped

    @property
    def drawable(self) -> int:
        """Rows that are not too old."""
        floor = self._oldest_drawn
        if floor is None:
            return self._filled
        return int((self._held.version_N[: self._filled] >= floor).sum())

    @property
    def _oldest_drawn(self) -> int | None:
        return None if self._max_age is None else self.newest_version - self._max_age

    def add(self, block: RowBlock) -> None:
        """Copy rows in. Of more than `capacity` rows only the last `capacity` stay."""
        block = block[-self.capacity :]
        if len(block) == 0:
            return
        self.changes += 1
        self.newest_version = max(self.newest_version, int(block.version_N.max()))
        replaced = max(0, len(block) - (self.capacity - self._filled))
        if replaced:
            self._replace(block[:replaced])
        if replaced < len(block):
            self._append(block[replaced:])

    def sample(self, count: int) -> RowBlock:
        """The next `count` rows of the pass (starting new passes as needed); copies.

        Raises:
            ValueError: `count` is not 1..drawable rows.
        """
        return self._held[self.draw(count)]

    def draw(self, count: int) -> torch.Tensor:
        """int64[count]: where the rows are that `sample` would give; they count as drawn.

        Raises: as `sample`.
        """
        if not 1 <= count <= self.drawable:
            raise ValueError(f"cannot draw {count} of {self.drawable} rows")
        parts: list[torch.Tensor] = []
        floor, needed = self._oldest_drawn, count
        while needed:
            if self._cursor == self._filled:
                self._new_pass()
            slots = self._order_C[self._cursor : min(self._cursor + needed, self._filled)]
            self._cursor += len(slots)
            if floor is not None:
                slots = slots[self._held.version_N[slots] >= floor]
            parts.append(slots.clone())
            needed -= len(slots)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def upcoming(self, count: int) -> torch.Tensor | None:
        """What `draw(count)` will return if no row is added before; nothing changes. None where that
        begins a new pass."""
        slots = self._order_C[self._cursor : self._filled]
        floor = self._oldest_drawn
        if floor is not None:
            slots = slots[self._held.version_N[slots] >= floor]
        return slots[:count].clone() if len(slots) >= count else None

    def gather(self, slots: torch.Tensor, out_BD: torch.Tensor) -> None:
        """Copy the rows at `slots` to `out_BD`."""
        torch.index_select(self._held.rows_ND, 0, slots, out=out_BD)

    def about(self, slots: torch.Tensor, rows_BD: torch.Tensor) -> RowBlock:
        """`rows_BD`, which are those at `slots`, with what is known of them."""
        held = self._held
        return RowBlock(rows_BD, held.weight_N[slots], held.step_N[slots], held.version_N[slots])

    def _append(self, block: RowBlock) -> None:
        first, self._filled = self._filled, self._filled + len(block)
        block.copy_to(self._held, slice(first, self._filled))
        self._order_C[first : self._filled] = torch.arange(first, self._filled)
        waiting = self._order_C[self._cursor : self._filled]
        shuffle = torch.randperm(len(waiting), generator=self._generator)
        self._order_C[self._cursor : self._filled] = waiting[shuffle]

    def _replace(self, block: RowBlock) -> None:
        count, replaced = len(block), self._evicted
        used = self._order_C[replaced : self._cursor][:count]
        self._evicted += len(used)
        unused = self._order_C[self._cursor : self._filled]
        if len(used) < count:
            shuffle = torch.randperm(len(unused), generator=self._generator)
            unused = unused[shuffle]
        unused = unused[: count - len(used)]
        # A chunk as large as the buffer also takes the slots replaced earlier in this pass.
        rest = self._order_C[: count - len(used) - len(unused)]
        block.copy_to(self._held, torch.cat([used, unused, rest]))

    def _new_pass(self) -> None:
        self._order_C[: self._filled] = torch.randperm(self._filled, generator=self._generator)
        self._cursor = self._evicted = 0

    def state_dict(self) -> StateDict:
        return {
            **self._held[: self._filled].state_dict(),
            "order": self._order_C[: self._filled],
            "cursor": self._cursor,
            "evicted": self._evicted,
            "newest_version": self.newest_version,
            "rng": self._generator.get_state(),
        }

    def load_state_dict(self, state: StateDict) -> None:
        """Raises ValueError when the state is not of a buffer of this capacity and width."""
        rows_ND, order_N = tensor_of(state, "rows"), tensor_of(state, "order")
        filled, cursor = len(rows_ND), int(number_of(state, "cursor"))
        if filled > self.capacity or rows_ND.shape[1:] != (self._d_in,):
            raise ValueError(
                f"rows {tuple(rows_ND.shape)} do not fit a buffer of {(self.capacity, self._d_in)}"
            )
        evicted = int(number_of(state, "evicted"))
        if not 0 <= evicted <= cursor <= filled or not torch.equal(
            order_N.sort().values, torch.arange(filled)
        ):
            raise ValueError("the buffer's order is not a permutation of its rows")
        RowBlock.from_state(state, self._d_in).copy_to(self._held, slice(0, filled))
        self._order_C[:filled] = order_N
        self._filled, self._cursor, self._evicted = filled, cursor, evicted
        self.newest_version = int(number_of(state, "newest_version"))
        self._generator.set_state(tensor_of(state, "rng"))
