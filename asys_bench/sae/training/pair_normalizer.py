"""Running mean and scale of a transcoder's rows, whose input and output are on end."""

from __future__ import annotations

from typing import Literal

import torch

from asys_bench.sae.architectures.scaling import PairScaling
from asys_bench.sae.checkpoint.state import StateDict, pick, put
from asys_bench.sae.training.normalizer import Normalizer


class PairNormalizer:
    """Two `Normalizer`s side by side: columns [0, d_in) and [d_in, d_in + d_out)."""

    def __init__(
        self, d_in: int, d_out: int, mode: Literal["none", "std", "norm"], window_rows: int
    ) -> None:
        self._d_in = d_in
        self._input = Normalizer(d_in, mode, window_rows)
        self._output = Normalizer(d_out, mode, window_rows)

    def update(
        self, rows_ND: torch.Tensor, weight_N: torch.Tensor, norm_N: torch.Tensor | None = None
    ) -> None:
        """Take in finite rows; row i counts as `weight_N[i]` > 0 rows. norm_N: the norms of their
        inputs, if known."""
        self._input.update(rows_ND[:, : self._d_in], weight_N, norm_N)
        self._output.update(rows_ND[:, self._d_in :], weight_N)

    @property
    def variance(self) -> float:
        """E||y - mean||^2 of the output."""
        return self._output.variance

    @property
    def drift(self) -> float:
        """The larger one of input and output; see `Normalizer.drift`."""
        return max(self._input.drift, self._output.drift)

    @property
    def scaling(self) -> PairScaling:
        """What the SAE should see of raw rows now."""
        return PairScaling(self._input.scaling, self._output.scaling)

    def state_dict(self) -> StateDict:
        state: StateDict = {}
        put(state, "input", self._input.state_dict())
        put(state, "output", self._output.state_dict())
        return state

    def load_state_dict(self, state: StateDict) -> None:
        """Raises ValueError when the state is not of rows of these widths."""
        self._input.load_state_dict(pick(state, "input"))
        self._output.load_state_dict(pick(state, "output"))
