"""E-detectors on ranks: alarms whose average run length is known without knowing a distribution.

Shin, Ramdas and Rinaldo 2022, "E-detectors: a nonparametric framework for sequential change
detection" (arXiv 2203.03532): if, before the change, every baseline increment L_t >= 0 has
E[L_t | past] <= 1, the Shiryaev-Roberts sum::

    M_t = L_t * (M_{t-1} + 1)

has E[M_tau] <= E[tau] at every stopping time tau, so that an alarm at M_t >= 1 / alpha comes after
1 / alpha values on average or later. Any average of such sums, with weights that add up to 1, is one too.

The increments bet on ranks. Where values are exchangeable, the rank of the newest among those before it is
uniform, and independent of the ranks before (ties broken at random), whatever their distribution:
`p` is then uniform on (0, 1), and::

    L = 1 - g + g * [p <= q] / q

has mean 1. Large q and g = 0.5 find a small shift that lasts, small q a large one at once: each value among
the highest 0.5 % multiplies by 180, while p reaches 1 / (n + 1) in a reference of n values. No tail is
extrapolated: a heavy one has the same ranks. Rejected: normal scores exp(a z - a * a / 2), which tails
heavier than Gaussian defeat; bounded bets on signs (de la Pena), valid under any variance, which need 15
values for what three ranks say.

The reference is the last `window` values, so that old ones are forgotten. Extreme values that have just come
are in it and make the next ones look less extreme: against an alarm.
"""

from __future__ import annotations

import copy
from typing import Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

QUANTILES = (0.25, 0.05, 0.02, 0.005)
STAKES = (0.5, 0.9)
"""Each quantile q is bet on with each of these g."""
SLACK = 0.05
"""Ranks of innovations are exchangeable as far as the prediction is right. Its errors last (a fit that
forgets 100 values, a trend whose noise falls), and small bets on them add up over hundreds of values. So
each increment is divided by 1 + SLACK: run lengths hold as long as E[L_t | past] <= 1 + SLACK."""
BETS = len(QUANTILES) * len(STAKES)


class Streams:
    """State of several streams: arrays whose first dimension counts them."""

    def grow(self, more: int) -> None:
        """So many streams more, of which nothing was seen."""
        for name, array in list(vars(self).items()):
            if isinstance(array, np.ndarray):
                empty = np.nan if name.endswith("W") else 0
                new = np.full((more, *array.shape[1:]), empty, array.dtype)
                setattr(self, name, np.concatenate([array, new]))

    def copies(self, stream: int, number: int) -> Self:
        """So many streams with the state of this one."""
        made = copy.copy(self)
        for name, array in vars(self).items():
            if isinstance(array, np.ndarray):
                setattr(made, name, np.repeat(array[stream : stream + 1], number, axis=0))
        return made


class RankReference(Streams):
    """The last `window` scores of each stream, with the values that they were made of.

    Values next to each other are ties, whatever their scores: what is expected of them moves slowly, so that
    scores of values that lie close (a density of 0, the lower end of a lognormal) would come in runs of the
    least or largest so far.
    """

    def __init__(self, window: int, seed: int) -> None:
        self._scores_NW: Floats = np.empty((0, window))
        self._values_NW: Floats = np.empty((0, window))
        self._seen_N: Indices = np.empty(0, np.intp)
        self._held_N: Indices = np.empty(0, np.intp)
        self._random = np.random.default_rng(seed)

    def draw_anew(self, seed: int) -> None:
        """Break ties by other draws."""
        self._random = np.random.default_rng(seed)

    def p_values(
        self, which_M: Indices, scores_M: Floats, values_M: Floats, near_M: Floats
    ) -> Floats:
        """Of each score: the chance of one at least as high, among those of its stream that were added.

        which_M: the streams that the scores are of. near_M: values no further apart are ties.
        """
        equal_MW = np.abs(self._values_NW[which_M] - values_M[:, None]) <= near_M[:, None]
        equal_M = equal_MW.sum(1)
        higher_M = ((self._scores_NW[which_M] > scores_M[:, None]) & ~equal_MW).sum(1)
        share_M = self._random.random(len(scores_M))
        p_M: Floats = (higher_M + share_M * (equal_M + 1)) / (self.counts[which_M] + 1)
        return p_M

    def add(self, which_M: Indices, scores_M: Floats, values_M: Floats) -> None:
        """Remember scores; the oldest of a full stream goes."""
        at_M = self._seen_N[which_M] % self._scores_NW.shape[1]
        self._held_N[which_M] += np.isnan(self._scores_NW[which_M, at_M])
        self._scores_NW[which_M, at_M] = scores_M
        self._values_NW[which_M, at_M] = values_M
        self._seen_N[which_M] += 1

    @property
    def counts(self) -> Indices:
        """Scores remembered of each stream."""
        return self._held_N

    def of(self, stream: int) -> Floats:
        """What is remembered of one stream, in no order."""
        scores_W = self._scores_NW[stream]
        found: Floats = scores_W[~np.isnan(scores_W)]
        return found

    def newest(self, stream: int, most: int) -> Floats:
        """The newest values that scores were made of, at most so many, the last one first."""
        found: Floats = self._values_NW[stream, self._places(stream, most)]
        return found[~np.isnan(found)]

    def forget(self, stream: int, most: int) -> None:
        """Let go of the newest, at most so many."""
        places = self._places(stream, most)
        self._scores_NW[stream, places] = self._values_NW[stream, places] = np.nan
        self._seen_N[stream] -= len(places)
        self._held_N[stream] = np.count_nonzero(~np.isnan(self._scores_NW[stream]))

    def _places(self, stream: int, most: int) -> Indices:
        """Of the newest, the last one first."""
        window, seen = self._scores_NW.shape[1], int(self._seen_N[stream])
        places: Indices = (seen - 1 - np.arange(min(most, seen, window))) % window
        return places


def increments(p_M: Floats) -> Floats:
    """The baseline increments L [M, BETS] of p-values [M]; each column's mean over uniform p is 1 / (1 +
    SLACK)."""
    won_MQ = p_M[:, None] <= np.asarray(QUANTILES)
    gain_MQ = won_MQ / np.asarray(QUANTILES)
    each_MQ = [(1 - stake + stake * gain_MQ) / (1 + SLACK) for stake in STAKES]
    return np.concatenate(each_MQ, axis=1)


class EDetector(Streams):
    """Shiryaev-Roberts sums over the bets of each stream, upwards and downwards."""

    def __init__(self) -> None:
        self._weights_N2B: Floats = np.empty((0, 2, BETS))
        self._sums_N2B: Floats = np.empty((0, 2, BETS))

    def add(self, up: float) -> None:
        """One stream more, whose upward half has the weight `up` in 0..1 and whose downward half the rest."""
        self.grow(1)
        self._weights_N2B[-1] = np.array([up, 1 - up])[:, None] / BETS

    def update(self, which_M: Indices, p_M: Floats) -> Floats:
        """Take p-values of streams; the e-detectors [M], to be compared with 1 / alpha."""
        increments_M2B = np.stack([increments(p_M), increments(1 - p_M)], axis=1)
        sums_M2B = increments_M2B * (self._sums_N2B[which_M] + 1)
        self._sums_N2B[which_M] = sums_M2B
        e_M: Floats = (sums_M2B * self._weights_N2B[which_M]).sum((1, 2))
        return e_M

    def up(self, stream: int) -> float:
        """The weight of the upward half."""
        return float(self._weights_N2B[stream, 0].sum())

    def went_up(self, stream: int) -> bool:
        """Whether the upward half of the e-detector is the larger one."""
        up, down = (self._sums_N2B[stream] * self._weights_N2B[stream]).sum(1)
        return bool(up >= down)

    def restart(self, which_M: Indices) -> None:
        """As if nothing had been seen: after an alarm."""
        self._sums_N2B[which_M] = 0.0
