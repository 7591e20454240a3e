"""Rows of far larger norm than the others: found in a stream, and left out of training.

Language models keep attention sinks: the first token of a sequence, whatever it is, gets nearly one
and the same vector of 20 to 1000 times the norm of the others (Sun et al. 2024, "Massive Activations
in Large Language Models", arXiv:2402.17762). They are a percent of the rows and nearly all of the
variance, so an SAE that is scaled to them learns nothing else. On SmolLM2-135M after layer 14, 0.8 %
of the rows have 165 times the median norm: with them, the FVU of the others was seen at 0.376 (gauge:
0.003), without them at 0.122. Figures of ours are in docs/benchmarks.md.

A row is an outlier when its norm is more than `limit` = `ratio` x the median norm of about the last
`WINDOW_ROWS` rows. Large norms can also be what a stream is about, so by default (`auto`) there is a
limit only while the norms beyond it are a mode of their own:

- text (token ids travel beside the rows): at most `MOST_OF_TEXT` of the rows, and hardly any row
  between limit / 2 and the limit. A heavy tail (lognormal, power law) fills that valley.
- anything else: besides, at most `MOST_OF_OTHERS`, `HUGE` times the median or more, and nearly one
  vector again and again (`SAME`), which one bias can stand for.

A stream whose scale grows fills the valley too; one that jumps exceeds the share after a few hundred
rows (text: thousands), and there is no limit any more. `skip` has the limit always, `keep` never.

Rejected: the largest gap between sorted norms (the extremes of a heavy tail have gaps as well); a
limit at a high quantile (a stream without outliers loses its tail).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from asys_bench.sae.checkpoint.checkpoint_files import StateDict, number_of, tensor_of

OutlierMode = Literal["auto", "skip", "keep"]
WINDOW_ROWS = 16_384
"""Rows after which a norm counts 1/e."""
LEAST_ROWS = 256
"""Rows before there can be a limit."""
LEAST_OF_TEXT, LEAST_OF_OTHERS = 4.0, 8.0
"""Rows beyond it before a limit begins."""
VALLEY, VALLEY_FILLED = 0.1, 0.5
"""Rows in the valley as a share of those beyond: at most this many to begin, from so many to end."""
MOST_OF_TEXT, MOST_OF_OTHERS = 0.25, 0.02
HUGE = 30.0
SAME, NO_MORE_THE_SAME = 0.9, 0.8
"""||mean||^2 / E||x||^2 of the rows beyond, 1 for one vector: at least this to begin, less to end."""
BINS_PER_OCTAVE, LOWEST_OCTAVE, OCTAVES = 16, -64, 128
FEW_ROWS = 16.0
"""Rows in the valley that may be chance."""


class OutlierGate:
    """The running norms of one stream and the limit that follows from them.

    d_in: columns of a row that its norm is of (a transcoder's input).
    text: token ids travel beside these rows.
    """

    def __init__(self, d_in: int, mode: OutlierMode, ratio: float, *, text: bool = False) -> None:
        self.mode: OutlierMode = mode
        self.limit = math.inf
        """Rows of a larger norm are outliers; infinity: there are none."""
        self._d_in, self._ratio, self._text = d_in, ratio, text
        self._count_H = np.zeros(BINS_PER_OCTAVE * OCTAVES)
        self._sum_D = np.zeros(d_in)
        self._square = self._beyond = 0.0
        """Sums over rows beyond the limit that there would be."""

    def norms(self, rows_ND: torch.Tensor) -> torch.Tensor:
        """float32[N]."""
        norm_N: torch.Tensor = torch.linalg.vector_norm(rows_ND[:, : self._d_in], dim=1)
        return norm_N

    @property
    def median(self) -> float:
        """Of the norms of late, to 1 %; 0 before the first row."""
        total_H = np.cumsum(self._count_H)
        if total_H[-1] == 0:
            return 0.0
        at = int(np.searchsorted(total_H, total_H[-1] / 2))
        inside = (total_H[-1] / 2 - (total_H[at - 1] if at else 0.0)) / self._count_H[at]
        return float(2.0 ** ((at + inside) / BINS_PER_OCTAVE + LOWEST_OCTAVE))

    def observe(self, rows_ND: torch.Tensor, norm_N: torch.Tensor) -> None:
        """Take in finite rows and move the limit."""
        if self.mode == "keep" or len(rows_ND) == 0:
            return
        place_N = torch.log2(norm_N.clamp_min(2.0**LOWEST_OCTAVE)).sub_(LOWEST_OCTAVE)
        place_N = place_N.mul_(BINS_PER_OCTAVE).long().clamp_max_(len(self._count_H) - 1)
        fade = math.exp(-len(rows_ND) / WINDOW_ROWS)
        self._count_H *= fade
        self._count_H += torch.bincount(place_N, minlength=len(self._count_H)).numpy()
        self._sum_D *= fade
        self._square *= fade
        self._beyond *= fade
        limit = self._ratio * self.median
        beyond_N = norm_N > limit
        if bool(beyond_N.any()):
            x_MD = rows_ND[beyond_N][:, : self._d_in].double()
            self._sum_D += x_MD.sum(0).numpy()
            self._square += float(x_MD.square().sum())
            self._beyond += len(x_MD)
        rows = float(self._count_H.sum())
        if rows < LEAST_ROWS and math.isinf(self.limit):
            return
        there = self.mode == "skip" or self._a_mode_of_its_own(limit, rows)
        self.limit = limit if there and limit > 0 else math.inf

    def _a_mode_of_its_own(self, limit: float, rows: float) -> bool:
        beyond = self._mass(limit, math.inf)
        valley = self._mass(limit / 2, limit)
        if beyond > (MOST_OF_TEXT if self._text else MOST_OF_OTHERS) * rows:
            return False
        if math.isfinite(self.limit):
            if valley >= FEW_ROWS and valley >= VALLEY_FILLED * beyond:
                return False
            return self._text or self._beyond < 1 or self._one_vector(limit, NO_MORE_THE_SAME)
        if valley > VALLEY * beyond:
            return False
        if self._text:
            return beyond >= LEAST_OF_TEXT
        return self._beyond >= LEAST_OF_OTHERS and self._one_vector(limit, SAME)

    def _one_vector(self, limit: float, same: float) -> bool:
        """The rows beyond are nearly one vector, and huge."""
        mean_square = self._square / self._beyond
        sameness = float(np.square(self._sum_D / self._beyond).sum()) / mean_square
        return sameness >= same and math.sqrt(mean_square) >= HUGE / self._ratio * limit

    def _mass(self, low: float, high: float) -> float:
        """Rows of late with a norm in [low, high)."""
        first, last = (_bin(value, len(self._count_H)) for value in (low, high))
        return float(self._count_H[first:last].sum())

    def state_dict(self) -> StateDict:
        held: npt.NDArray[np.int64] = np.flatnonzero(self._count_H)
        return {
            "kept": int(self.mode == "keep"),
            "limit": self.limit if math.isfinite(self.limit) else -1.0,
            "bins": torch.from_numpy(held),
            "counts": torch.from_numpy(self._count_H[held]),
            "sum": torch.from_numpy(self._sum_D.copy()),
            "square": self._square,
            "beyond": self._beyond,
        }

    def load_state_dict(self, state: StateDict) -> None:
        """A state of before outliers were told apart: there is no limit, and none begins.

        Raises ValueError when the state is not of rows of this width.
        """
        if not state:
            self.mode = "keep" if self.mode == "auto" else self.mode
            return
        bins, counts = tensor_of(state, "bins"), tensor_of(state, "counts")
        total_D = tensor_of(state, "sum")
        if total_D.shape != (self._d_in,) or bins.shape != counts.shape:
            raise ValueError(
                f"norms of rows {tuple(total_D.shape)} are not of {self._d_in}-wide ones"
            )
        if len(bins) and not 0 <= int(bins.min()) <= int(bins.max()) < len(self._count_H):
            raise ValueError("norms out of range")
        if self.mode == "auto" and number_of(state, "kept"):
            self.mode = "keep"
        self._count_H[:] = 0.0
        self._count_H[bins.numpy()] = counts.numpy()
        self._sum_D = total_D.double().numpy().copy()
        self._square, self._beyond = number_of(state, "square"), number_of(state, "beyond")
        limit = number_of(state, "limit")
        self.limit = limit if limit > 0 and self.mode != "keep" else math.inf


def _bin(norm: float, bins: int) -> int:
    if math.isinf(norm):
        return bins
    if norm <= 0:
        return 0
    return min(bins, max(0, round((math.log2(norm) - LOWEST_OCTAVE) * BINS_PER_OCTAVE)))
