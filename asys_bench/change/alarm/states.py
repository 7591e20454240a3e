"""How long what a watcher raised goes on, and when it is over: `States`.

A state is one alarm: evidence that comes together again within `STATE` means of the last time, of the
longer of the two spans, is of the same state, and prolongs it. A stream that the predictor does not follow
would raise one after the other, and means over a long span are of before and after a change for long.

It is over when values are back: some means in a row are closer to the level before than to what the
alarm saw. A level that was there before is no news and no alarm, but it ends the state: the next change is an
alarm again. What has gone on for `USUAL` means without coming back is the usual from then on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from asys_bench.change.alarm.e_detector import Floats, Indices, Streams

STATE = 128
"""A state has ended after so many means without evidence, of the span that had it."""
USUAL = 1024
"""Means; a reference has then forgotten what was before."""
BACK_VALUES, LEAST_BLOCK, LEAST_BLOCKS = 32, 8, 3
"""Values are back when as many of them as this, in blocks of at least 8 values or a span and in at least
three such, have block means on the old side: single values of a small change cross over and back by
chance."""


class States(Streams):
    """Of each watcher, counted in its values."""

    def __init__(self) -> None:
        self._values_N: Indices = np.empty(0, np.intp)
        self._until_N: Indices = np.empty(0, np.intp)
        self._last_N: Indices = np.empty(0, np.intp)
        """When evidence came last; 0: there was none, or its state is over."""
        self._span_N: Indices = np.empty(0, np.intp)
        """Of the alarm whose state may still come back; 0: there is none."""
        self._since_N: Indices = np.empty(0, np.intp)
        self._middle_N: Floats = np.empty(0)
        """Between the level before and the one that the alarm saw."""
        self._sign_N: Floats = np.empty(0)
        """1.0: the alarm saw more than before, else -1.0."""
        self._sum_N: Floats = np.empty(0)
        self._summed_N: Indices = np.empty(0, np.intp)
        self._blocks_N: Indices = np.empty(0, np.intp)
        """In a row, on the old side."""

    def value(self, which_M: Indices, values_M: Floats) -> list[int]:
        """A value more of these; those that are back with it."""
        self._values_N[which_M] += 1
        open_M = self._span_N[which_M] > 0
        if not open_M.any():
            return []
        which_K = which_M[open_M]
        self._sum_N[which_K] += values_M[open_M]
        self._summed_N[which_K] += 1
        which_K = which_K[self._summed_N[which_K] == self._blocks_of(which_K)]
        block_K = self._blocks_of(which_K)
        old_K = self._is_old(which_K, self._sum_N[which_K] / block_K)
        self._sum_N[which_K], self._summed_N[which_K] = 0.0, 0
        self._blocks_N[which_K] = np.where(old_K, self._blocks_N[which_K] + 1, 0)
        is_back_K = self._blocks_N[which_K] >= np.maximum(LEAST_BLOCKS, BACK_VALUES // block_K)
        is_usual_K = (
            self._values_N[which_K] - self._since_N[which_K] >= USUAL * self._span_N[which_K]
        )
        self._span_N[which_K[is_usual_K & ~is_back_K]] = 0
        return [int(one) for one in which_K[is_back_K]]

    def is_new(self, watcher: int, span: int, levels: tuple[float, float]) -> bool:
        """Whether evidence over that span is of a state that has just begun; its state goes on from here.

        levels: (before what has changed, now).
        """
        before, seen = levels
        now, until = int(self._values_N[watcher]), int(self._until_N[watcher])
        last = int(self._last_N[watcher])
        self._until_N[watcher], self._last_N[watcher] = max(until, now + STATE * span), now
        which_1 = np.array([watcher])
        if now < until or (last and now < last + STATE * span):
            return False
        if self._span_N[watcher] and self._is_old(which_1, np.array([seen]))[0]:
            return False
        self._span_N[watcher], self._since_N[watcher] = span, now
        self._middle_N[watcher] = (seen + before) / 2
        self._sign_N[watcher] = 1.0 if seen >= before else -1.0
        self._sum_N[watcher], self._summed_N[watcher], self._blocks_N[watcher] = 0.0, 0, 0
        return True

    def lasted(self, watcher: int) -> int:
        """Values since the alarm of the watcher's state."""
        return int(self._values_N[watcher] - self._since_N[watcher])

    def end(self, watchers: Sequence[int]) -> None:
        """Their states are over: the next evidence is of another one."""
        for array_N in (self._until_N, self._last_N, self._span_N):
            array_N[list(watchers)] = 0

    def _blocks_of(self, which_M: Indices) -> Indices:
        """Values of a block of their states."""
        return np.maximum(self._span_N[which_M], LEAST_BLOCK)

    def _is_old(self, which_M: Indices, means_M: Floats) -> NDArray[np.bool_]:
        """Whether means are on the side of the level before the state."""
        old_M: NDArray[np.bool_] = (means_M - self._middle_N[which_M]) * self._sign_N[which_M] < 0
        return old_M
