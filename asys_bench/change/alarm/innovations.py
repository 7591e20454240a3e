"""What a value adds to what was expected: innovations of a linear predictor, in units of their spread.

A run that learns drifts, and its figures depend on those before. Ranks (`e_detector`) need values that are
exchangeable, so each stream is first predicted from its own past: the step to the next value::

    x_t - x_{t-1}  =  a  +  b (x_{t-1} - m)  +  c (x_{t-1} - x_{t-2})

by least squares that forget (`MEMORY` values), with m a running mean. b = -1 is white noise, b = c = 0 a
random walk, a the slope of a trend. The innovation is what is left, divided by the spread of those before.

No value is learnt from as if it were further than `CLIP` spreads from what was expected: it is tamed. So a
change is not learnt away at its first values, and a wild value spoils neither fit nor spread. It is predicted
from as it is and tamed, and the closer prediction counts: a spike is followed by what was expected without
it, a level that jumps by what was expected with it, and neither makes two extremes of one.

Far from where it was fitted a prediction is as uncertain as least squares say, by the leverage h of its
terms: innovations are divided by sqrt(1 + h) too.

Where large innovations come together (volatility clusters: Engle 1982, Bollerslev 1986) the next one is
expected to be large. How far is fitted too: with s the spread and q the mean size of the last few differences
of two innovations in a row, over sqrt(2), both of tamed ones::

    |innovation| / s  =  1 + d (q / s - 1),    0 <= d <= 1

and innovations are divided by 1 + d (q / s - 1) where that is more than 1. Without clusters d is 0, and a
change is as extreme as it was; and innovations of a lasting change, which are alike, differ little.

The first `WARM_UP` values give the units (medians), and are then learnt from like all others.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from asys_bench.change.alarm.e_detector import Floats, Indices, Streams

MEMORY = 100.0
"""Values over which fits and means forget by a factor e."""
SPREAD_MEMORY = 30.0
CLIP = 4.0
BURST_MEMORY = 6.0
"""Differences whose mean size is that of a burst."""
BURST_FAR = 0.75
"""Bursts and sizes beyond so many spreads above the usual count as that far in the fit: else a lasting change
would be learnt from its first values as a burst that goes on."""
BURST_FIT_MEMORY, BURST_RIDGE = 300.0, 2.0
FAR = 1.5
"""Rows of the fit whose terms are further than this many times their usual size count less."""
LEAST_SHARE = 0.125
"""Units are at least this share of the mean size of the steps that were not 0. A feature that is silent most
of the time would otherwise have units that vanish, grow by a tenth with each value that is not 0, and give
no innovations that can be compared."""
TIE = 0.25
"""Values closer than this many spreads are ties;"""
STILL_TIE = 4.0
"""and closer than so many small steps, times the share of steps that are 0: of the density of a feature that
fires in none to three rows most steps are 0, and a few rows more are chance."""
WARM_UP = 32
"""Values of a stream before its first innovation."""
_RIDGE = 1e-2
_TERMS = 3
_TINY = 1e-12


class Predictor(Streams):
    """One for each stream."""

    def __init__(self) -> None:
        self._seen_N: Indices = np.empty(0, np.intp)
        self._first_NV: Floats = np.empty((0, WARM_UP))
        self._move_N: Floats = np.empty(0)
        """Running mean of |x_t - x_{t-1}| where it is not 0."""
        self._still_N: Floats = np.empty(0)
        """Running share of steps that are 0."""
        self._small_N: Floats = np.empty(0)
        """A small step that is not 0: about a tenth of them are smaller."""
        self._last_N2: Floats = np.empty((0, 2))
        self._tame_N2: Floats = np.empty((0, 2))
        self._mean_N: Floats = np.empty(0)
        self._aside_N: Floats = np.empty(0)
        """Running mean of |x_t - m|."""
        self._step_N: Floats = np.empty(0)
        """Running mean of |x_t - x_{t-1}|: the unit of the fit."""
        self._spread_N: Floats = np.empty(0)
        """Running mean of |innovation|, in raw units."""
        self._burst_N: Floats = np.empty(0)
        """Mean size of the last few differences of two innovations in a row over sqrt(2), in spreads, less
        1."""
        self._before_N: Floats = np.empty(0)
        """The last innovation, tamed, in spreads."""
        self._bursts_N2: Floats = np.empty((0, 2))
        """Sums of the fit of d: of squares, of products."""
        self._squares_N33: Floats = np.empty((0, _TERMS, _TERMS))
        self._products_N3: Floats = np.empty((0, _TERMS))

    def innovations(self, which_M: Indices, values_M: Floats) -> tuple[Floats, Floats]:
        """(innovations in spreads, what was expected) of the streams' next values; NaN while one warms up.

        which_M: the streams, each at most once.
        """
        innovations_M = np.full(len(which_M), np.nan)
        expected_M = np.full(len(which_M), np.nan)
        seen_M = self._seen_N[which_M]
        warm_M = seen_M >= WARM_UP
        if warm_M.any():
            innovations_M[warm_M], expected_M[warm_M] = self._next(
                which_M[warm_M], values_M[warm_M]
            )
        if not warm_M.all():
            cold_M = which_M[~warm_M]
            self._first_NV[cold_M, seen_M[~warm_M]] = values_M[~warm_M]
        self._seen_N[which_M] += 1
        begins_M = which_M[seen_M == WARM_UP - 1]
        if len(begins_M):
            self._begin(begins_M)
        return innovations_M, expected_M

    def spreads(self, which_M: Indices) -> Floats:
        """The units of the streams' innovations, in their own."""
        return self._at_least(self._spread_N, which_M)

    def ties(self, which_M: Indices) -> Floats:
        """Values of the streams that are no further apart tell nothing."""
        still_M = STILL_TIE * self._still_N[which_M] * self._small_N[which_M]
        ties_M: Floats = np.maximum(TIE * self.spreads(which_M), still_M)
        return ties_M

    def _at_least(self, size_N: Floats, which_M: Indices) -> Floats:
        """Sizes of streams that do not vanish while values stay where they are."""
        least_M = np.maximum(LEAST_SHARE * self._move_N[which_M], _TINY)
        sizes_M: Floats = np.maximum(size_N[which_M], least_M)
        return sizes_M

    def go_back(self, stream: int, earlier: Predictor) -> None:
        """What was fitted to the stream is again what it was; `earlier` has that stream alone. Its last
        values stay."""
        for name, array in vars(earlier).items():
            if isinstance(array, np.ndarray) and name not in ("_seen_N", "_last_N2", "_tame_N2"):
                getattr(self, name)[stream] = array[0]

    def continuations(self, stream: int, innovations_RV: Floats) -> Floats:
        """Values [R, V] that may come next, by the fit as it is, if these were the innovations."""
        replays = len(innovations_RV)
        which_R, one = np.arange(replays), np.array([stream])
        unit, spread = (
            float(self._at_least(size, one)[0]) for size in (self._step_N, self._spread_N)
        )
        copied = self.copies(stream, replays)
        slopes_R3 = copied._slopes(which_R)
        last_R2, values = copied._last_N2, []
        for innovations_R in innovations_RV.T:
            terms_R3 = copied._terms(which_R, last_R2, np.full(replays, unit))
            next_R = last_R2[:, 0] + unit * (terms_R3 * slopes_R3).sum(1)
            next_R = next_R + innovations_R * spread
            values.append(next_R)
            last_R2 = np.stack([next_R, last_R2[:, 0]], axis=1)
        return np.stack(values, axis=1)

    def _begin(self, which_M: Indices) -> None:
        """Units from the first values, which are then learnt from."""
        first_MV = self._first_NV[which_M]
        steps_MV = np.abs(np.diff(first_MV, axis=1))
        median_M = np.median(steps_MV, axis=1)
        self._move_N[which_M] = _median_above_0(steps_MV)
        self._small_N[which_M] = self._move_N[which_M]
        self._still_N[which_M] = (steps_MV <= 0).mean(1)
        self._step_N[which_M] = np.where(median_M > 0, median_M, steps_MV.mean(1))
        self._spread_N[which_M] = self._step_N[which_M]
        self._mean_N[which_M] = np.median(first_MV, axis=1)
        self._aside_N[which_M] = np.median(
            np.abs(first_MV - self._mean_N[which_M][:, None]), axis=1
        )
        self._last_N2[which_M] = self._tame_N2[which_M] = self._mean_N[which_M][:, None]
        for values_M in first_MV.T:
            self._next(which_M, values_M)

    def _move(self, which_M: Indices, values_M: Floats) -> None:
        """Take the size of a step that is not 0."""
        size_M, usual_M = np.abs(values_M - self._last_N2[which_M, 0]), self._move_N[which_M]
        tamed_M = np.where(usual_M > 0, np.minimum(size_M, 2 * CLIP * usual_M), size_M)
        part_M = np.where(usual_M > 0, (tamed_M - usual_M) / SPREAD_MEMORY, tamed_M)
        self._move_N[which_M] = usual_M + np.where(size_M > 0, part_M, 0.0)
        self._still_N[which_M] += ((size_M <= 0) - self._still_N[which_M]) / MEMORY
        small_M = self._small_N[which_M]
        moved_M = np.where(small_M > 0, small_M * np.where(size_M < small_M, 0.5, 1.08), size_M)
        self._small_N[which_M] = np.where(size_M > 0, moved_M, small_M)

    def _next(self, which_M: Indices, values_M: Floats) -> tuple[Floats, Floats]:
        """(innovations, what was expected) of streams whose units are known."""
        self._move(which_M, values_M)
        unit_M = self._at_least(self._step_N, which_M)
        spread_M = self._at_least(self._spread_N, which_M)
        slopes_M3 = self._slopes(which_M)
        terms_2M3 = np.stack(
            [self._terms(which_M, last[which_M], unit_M) for last in (self._last_N2, self._tame_N2)]
        )
        last_2M = np.stack([self._last_N2[which_M, 0], self._tame_N2[which_M, 0]])
        expected_2M = last_2M + unit_M * (terms_2M3 * slopes_M3).sum(2)
        closer_M = np.abs(values_M - expected_2M).argmin(0)
        each_M = np.arange(len(which_M))
        expected_M: Floats = expected_2M[closer_M, each_M]
        error_M = values_M - expected_M
        tamed_M = expected_M + np.clip(error_M, -CLIP * spread_M, CLIP * spread_M)
        terms_M3 = terms_2M3[closer_M, each_M]
        leverage_M = (terms_M3 * self._solved(which_M, terms_M3)).sum(1)
        self._learn(which_M, tamed_M, last_2M[closer_M, each_M], terms_M3, unit_M)
        self._spread_N[which_M] = (
            spread_M + (np.abs(tamed_M - expected_M) - spread_M) / SPREAD_MEMORY
        )
        self._last_N2[which_M] = np.stack([values_M, self._last_N2[which_M, 0]], axis=1)
        self._tame_N2[which_M] = np.stack([tamed_M, last_2M[1]], axis=1)
        swell_M = self._swell(which_M, (tamed_M - expected_M) / spread_M)
        return error_M / (spread_M * swell_M * np.sqrt(1 + leverage_M)), expected_M

    def _swell(self, which_M: Indices, tamed_M: Floats) -> Floats:
        """How many times their usual size innovations were expected to have; then learn from them.

        tamed_M: innovations in spreads.
        """
        burst_M, sums_M2 = self._burst_N[which_M], self._bursts_N2[which_M]
        slope_M = np.clip(sums_M2[:, 1] / (sums_M2[:, 0] + BURST_RIDGE), 0.0, 1.0)
        seen_M, size_M = (np.minimum(one, BURST_FAR) for one in (burst_M, np.abs(tamed_M) - 1))
        learnt_M2 = seen_M[:, None] * np.stack([seen_M, size_M], axis=1)
        self._bursts_N2[which_M] = np.exp(-1 / BURST_FIT_MEMORY) * sums_M2 + learnt_M2
        differ_M = np.abs(tamed_M - self._before_N[which_M]) / np.sqrt(2) - 1
        self._burst_N[which_M] = burst_M + (differ_M - burst_M) / BURST_MEMORY
        self._before_N[which_M] = tamed_M
        swell_M: Floats = 1 + slope_M * np.maximum(burst_M, 0.0)
        return swell_M

    def _terms(self, which_M: Indices, last_M2: Floats, unit_M: Floats) -> Floats:
        """Of the next step [M, 3], without units."""
        return np.stack(
            [
                np.ones(len(which_M)),
                (last_M2[:, 0] - self._mean_N[which_M]) / unit_M,
                (last_M2[:, 0] - last_M2[:, 1]) / unit_M,
            ],
            axis=1,
        )

    def _slopes(self, which_M: Indices) -> Floats:
        """As fitted [M, 3]: a, b and c."""
        return self._solved(which_M, self._products_N3[which_M])

    def _solved(self, which_M: Indices, right_M3: Floats) -> Floats:
        squares_M33: Floats = self._squares_N33[which_M] + _RIDGE * np.eye(_TERMS)
        solved_M31: Any = np.linalg.solve(squares_M33, right_M3[:, :, None])
        solved_M3: Floats = solved_M31[:, :, 0]
        return solved_M3

    def _learn(
        self, which_M: Indices, tamed_M: Floats, last_M: Floats, terms_M3: Floats, unit_M: Floats
    ) -> None:
        kept = np.exp(-1 / MEMORY)
        # A far term would decide the fit alone, and a level that jumped be learnt from two values.
        usual_M2 = np.stack([self._aside_N[which_M] / unit_M, np.ones(len(which_M))], axis=1)
        reach_M = (np.abs(terms_M3[:, 1:]) / (FAR * np.maximum(usual_M2, _TINY))).max(1)
        weight_M = np.maximum(1.0, reach_M) ** -2.0
        outer_M33 = terms_M3[:, :, None] * terms_M3[:, None, :] * weight_M[:, None, None]
        self._squares_N33[which_M] = kept * self._squares_N33[which_M] + outer_M33
        step_M = (tamed_M - last_M) / unit_M
        self._products_N3[which_M] = (
            kept * self._products_N3[which_M] + terms_M3 * (weight_M * step_M)[:, None]
        )
        far_M = 2 * CLIP * unit_M
        moved_M = np.minimum(np.abs(tamed_M - self._tame_N2[which_M, 0]), far_M)
        self._step_N[which_M] += (moved_M - self._step_N[which_M]) / MEMORY
        far_M = CLIP * np.maximum(self._aside_N[which_M], unit_M)
        aside_M = np.clip(tamed_M - self._mean_N[which_M], -far_M, far_M)
        self._mean_N[which_M] += aside_M / MEMORY
        self._aside_N[which_M] += (np.abs(aside_M) - self._aside_N[which_M]) / MEMORY


def _median_above_0(sizes_MV: Floats) -> Floats:
    """Of each row the median of what is not 0; 0.0 where there is nothing."""
    zeros_M = (sizes_MV <= 0).sum(1)
    middle_M = np.minimum((zeros_M + sizes_MV.shape[1]) // 2, sizes_MV.shape[1] - 1)
    medians_M: Floats = np.sort(sizes_MV, axis=1)[np.arange(len(sizes_MV)), middle_M]
    return medians_M
