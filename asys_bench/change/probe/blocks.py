"""Blocks of rows that depend on each other: an episode, a sequence, neighbouring steps.

A block is on one side, trained on or held out, as a whole, and intervals are over blocks. Where nothing says
what belongs together, the steps do: `STEPS` calls of the model in a row are one block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from asys_bench.contracts.coin import hashed

BLOCK_LABELS = ("episode", "document", "sample")
"""Labels that are taken for the block where they come, the first of them; no probe learns them."""
STEPS = 64
HELD_OUT_SHARE = 0.25
Ids = npt.NDArray[np.uint64]


def is_held_out(ids_N: Ids, seed: int) -> npt.NDArray[np.bool_]:
    """Whether each block is on the side of the rows that nothing is trained on; the same for all time."""
    limit = np.uint64(int(HELD_OUT_SHARE * 2.0**64))
    side: npt.NDArray[np.bool_] = hashed(ids_N.view(np.int64), seed) < limit
    return side


class BlockRule:
    """What a block of one hook is: chosen when its first rows with labels come, and kept.

    named: a label that is the block; None chooses. life: of this worker, so that steps which are
    numbered by counting are not those of another life.
    """

    def __init__(self, named: str | None, life: int) -> None:
        self._named, self._life = named, life
        self.kind: str | None = None
        """As people read it: a label's name, `sequence`, `call` or `64 steps`."""
        self._calls: dict[int, int] = {}
        self._last: dict[int, tuple[int, ...]] = {}

    def of(
        self,
        call: tuple[int, int, int, int],
        attempt: int,
        dims: tuple[int, ...] | None,
        text: int,
        rows_N: npt.NDArray[np.int64],
        labels: Mapping[str, npt.NDArray[np.float64]],
    ) -> Ids:
        """The block of each of the rows `rows_N` of a call (source, step, version, microbatch)."""
        if self.kind is None or (self.kind == f"{STEPS} steps" and self._label(labels)):
            self.kind = self._choose(dims, text, labels)
        whole = hashed(1, attempt, *call)
        if self.kind == "sequence" and dims is not None and len(dims) > 1:
            per = max(1, int(np.prod(dims[1:])))
            return hashed(2, whole.view(np.int64), rows_N // per)
        if self.kind in labels:
            values_N = labels[self.kind]
            known_N = np.isfinite(values_N)
            ids_N = self.of_label(attempt, call[0], np.where(known_N, values_N, 0))
            return np.where(known_N, ids_N, whole)
        if self.kind == f"{STEPS} steps":
            source = call[0]
            if self._last.get(source) != call:  # hooks of one call share its number
                self._last[source] = call
                self._calls[source] = self._calls.get(source, -1) + 1
            return np.full(
                len(rows_N), hashed(4, attempt, self._life, source, self._calls[source] // STEPS)
            )
        return np.full(len(rows_N), whole)

    @staticmethod
    def of_label(
        attempt: int, source: int | npt.NDArray[np.int64], values_N: npt.NDArray[np.float64]
    ) -> Ids:
        """Of rows whose label, which is the block, has these values."""
        return hashed(3, attempt, source, values_N.view(np.int64))

    def _label(self, labels: Mapping[str, object]) -> str | None:
        names: Sequence[str] = (self._named,) if self._named is not None else BLOCK_LABELS
        return next((name for name in names if name in labels), None)

    def _choose(self, dims: tuple[int, ...] | None, text: int, labels: Mapping[str, object]) -> str:
        label = self._label(labels)
        if label is not None:
            return label
        if dims is not None and len(dims) > 1:
            return "sequence"
        return "call" if text else f"{STEPS} steps"
