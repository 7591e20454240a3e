"""Which features have not fired for a while."""

from __future__ import annotations

import torch

from asys_bench.sae.checkpoint.state import StateDict, tensor_of


class DeadFeatures:
    """Counts trained rows since each feature last fired."""

    def __init__(self, d_sae: int, dead_after_rows: int) -> None:
        self._after = dead_after_rows
        self.silent_rows_F = torch.zeros(d_sae, dtype=torch.int64)
        self.count = 0
        """Dead features after the last `update`."""

    def update(self, fired_F: torch.Tensor, rows: int) -> None:
        """A batch of `rows` rows was trained in which feature f fired `fired_F[f]` times."""
        self.silent_rows_F.add_(rows).masked_fill_(fired_F > 0, 0)
        self._count()

    def indices(self) -> torch.Tensor:
        """int64 indices of the dead features."""
        return (self.silent_rows_F > self._after).nonzero().squeeze(1)

    def revive(self, index_N: torch.Tensor) -> None:
        """These were re-initialised: give them a full window to prove themselves."""
        self.silent_rows_F[index_N] = 0
        self._count()

    @property
    def fraction(self) -> float:
        return self.count / len(self.silent_rows_F)

    def _count(self) -> None:
        self.count = int((self.silent_rows_F > self._after).sum())

    def state_dict(self) -> StateDict:
        return {"silent_rows": self.silent_rows_F}

    def load_state_dict(self, state: StateDict) -> None:
        self.silent_rows_F.copy_(tensor_of(state, "silent_rows"))
        self._count()
