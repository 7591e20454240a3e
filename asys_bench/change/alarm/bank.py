"""All watchers of a run under one budget of false alarms: `DetectorBank`.

Each watcher is watched over several spans: single values, and means of 8 and of 64 of them. A shift that is
small beside the spread of single values is large beside that of means. Every watcher and span has a
predictor, a reference and an e-detector of its own, and an equal part of the budget, which the cadence of its
values turns into a rate per value::

    alpha = (false_alarms_per_day / (watchers * spans)) / (values per day / span)

A watcher more makes every part smaller from then on. The false alarms of all of them together are then at
most the budget, whatever their dependence: rates add up. Cadence is counted at its most (a value at every
interval); a watcher whose values come more rarely gives fewer alarms.

An ongoing state is one alarm, and a level that comes back ends it (`states`): its values are then taken out
of the references, so that the next change is compared with what was usual.

`power` says what is not missed: the smallest lasting shift that is found in nine of ten cases within some
values. The fitted predictor makes values to come from innovations of the reference, the shift is added, and
copies of the detector watch them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from asys_bench.change.alarm.e_detector import EDetector, Floats, Indices, RankReference, Streams
from asys_bench.change.alarm.innovations import Predictor
from asys_bench.change.alarm.states import States

Side = Literal["up", "down", "both"]
SPANS = (1, 8, 64)
WINDOW = 1024
"""Innovations in a reference."""
EVIDENCE = 8
"""Values from which an alarm comes, at the most: those before it are of the level before."""
BEFORE = 40
"""The level before is the median of the means from `EVIDENCE` to this many before an alarm."""
DAY_S = 86400.0
FOUND = 0.9
_REPLAYS = 64
_HALVINGS = 8
_LARGEST_SHIFT = 64.0
_LEAST_REFERENCE = 50
_UP: dict[Side, float] = {"up": 1.0, "down": 0.0, "both": 0.5}


@dataclass(frozen=True, slots=True)
class Finding:
    """An alarm of one watcher.

    log10_e: of the e-detector, against -log10(alpha) = `log10_threshold`.
    innovation: of the last value, in spreads. expected: what was predicted for it; `value` is a mean over
    `span` values.
    """

    watcher: int
    span: int
    up: bool
    value: float
    expected: float
    innovation: float
    log10_e: float
    log10_threshold: float


@dataclass(frozen=True, slots=True)
class Power:
    """The smallest lasting shift that `values` means over `span` find in 9 of 10 cases; NaN: none up to
    64 spreads, or too little has been seen."""

    span: int
    values: int
    shift: float
    shift_in_spreads: float


class _Span(Streams):
    """One span of every watcher."""

    def __init__(self, span: int, seed: int) -> None:
        self.span, self.alpha = span, 1.0
        self.predictor = Predictor()
        self.reference = RankReference(WINDOW, seed)
        self.detector = EDetector()
        self._sums_N: Floats = np.empty(0)
        self._counts_N: Indices = np.empty(0, np.intp)
        self._least_N: Floats = np.empty(0)
        """Values that are no further apart are ties, whatever the spread."""
        self._usual: dict[int, Predictor] = {}
        """Of watchers whose state may come back: what was expected when it began."""

    def add(self, up: float, least: float) -> None:
        self.grow(1)
        self._least_N[-1] = least
        self.predictor.grow(1)
        self.reference.grow(1)
        self.detector.add(up)

    def levels(self, watcher: int) -> tuple[float, float]:
        """(before what has changed, now) of a watcher with an alarm over this span."""
        past = self.reference.newest(watcher, BEFORE)
        now = float(np.median(past[: EVIDENCE // 2]))
        return (float(np.median(past[EVIDENCE:])) if len(past) > EVIDENCE else now), now

    def begin_state(self, watcher: int) -> None:
        self._usual[watcher] = self.predictor.copies(watcher, 1)

    def end_state(self, watcher: int, values: int) -> None:
        """The newest so many values, and the evidence before them, were not of the usual."""
        self.reference.forget(watcher, values // self.span + EVIDENCE)
        if (usual := self._usual.pop(watcher, None)) is not None:
            self.predictor.go_back(watcher, usual)

    def update(self, which_M: Indices, values_M: Floats) -> list[Finding]:
        self._sums_N[which_M] += values_M
        self._counts_N[which_M] += 1
        whole_M = self._counts_N[which_M] == self.span
        which_M = which_M[whole_M]
        if not len(which_M):
            return []
        means_M = self._sums_N[which_M] / self.span
        self._sums_N[which_M], self._counts_N[which_M] = 0.0, 0
        near_M = np.maximum(self.predictor.ties(which_M), self._least_N[which_M])
        innovations_M, expected_M = self.predictor.innovations(which_M, means_M)
        ready_M = ~np.isnan(innovations_M)
        which_M, means_M = which_M[ready_M], means_M[ready_M]
        innovations_M, expected_M = innovations_M[ready_M], expected_M[ready_M]
        p_M = self.reference.p_values(which_M, innovations_M, means_M, near_M[ready_M])
        self.reference.add(which_M, innovations_M, means_M)
        e_M = self.detector.update(which_M, p_M)
        return [
            Finding(
                watcher=int(which_M[at]),
                span=self.span,
                up=self.detector.went_up(int(which_M[at])),
                value=float(means_M[at]),
                expected=float(expected_M[at]),
                innovation=float(innovations_M[at]),
                log10_e=math.log10(e_M[at]),
                log10_threshold=-math.log10(self.alpha),
            )
            for at in np.flatnonzero(e_M >= 1 / self.alpha)
        ]

    def power(self, watcher: int, values: int, seed: int) -> Power:
        past = self.reference.of(watcher)
        spread = float(self.predictor.spreads(np.array([watcher]))[0])
        if len(past) < _LEAST_REFERENCE or spread <= 0:
            return Power(self.span, values, math.nan, math.nan)
        drawn_RV = np.random.default_rng(seed).choice(past, (_REPLAYS, values))
        clean_RV = self.predictor.continuations(watcher, drawn_RV)
        each_R = np.arange(_REPLAYS)

        def finds(shift: float) -> bool:
            twin = self._twin(watcher, seed)
            found_R = np.zeros(_REPLAYS, bool)
            for values_R in (clean_RV + shift * spread).T:
                found_R[[one.watcher for one in twin.update(each_R, values_R)]] = True
            return bool(found_R.mean() >= FOUND)

        up = 1.0 if self.detector.up(watcher) > 0 else -1.0
        low, high = 0.0, _LARGEST_SHIFT
        if not finds(up * high):
            return Power(self.span, values, math.nan, math.nan)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if finds(up * middle) else (middle, high)
        return Power(self.span, values, high * spread, high)

    def _twin(self, watcher: int, seed: int) -> _Span:
        """Replays of this watcher from here on, each value a mean already."""
        twin = _Span(1, seed)
        twin.alpha = self.alpha
        twin.predictor = self.predictor.copies(watcher, _REPLAYS)
        twin.reference = self.reference.copies(watcher, _REPLAYS)
        twin.reference.draw_anew(seed)
        twin.detector = self.detector.copies(watcher, _REPLAYS)
        twin.detector.restart(np.arange(_REPLAYS))
        twin.grow(_REPLAYS)
        twin._least_N[:] = self._least_N[watcher]
        return twin


class DetectorBank:
    """See the module.

    interval_s: least time between two values of a watcher.
    """

    def __init__(
        self,
        *,
        false_alarms_per_day: float,
        interval_s: float,
        seed: int = 0,
        spans: Sequence[int] = SPANS,
    ) -> None:
        self._per_value = false_alarms_per_day * interval_s / DAY_S
        self._sides: list[Side] = []
        self._spans = [_Span(span, seed + span) for span in spans]
        self._states = States()
        self.back: list[int] = []
        """Watchers whose level was back with the last values: what they had raised is over."""

    def __len__(self) -> int:
        return len(self._sides)

    def add(self, side: Side, least: float = 0.0) -> int:
        """A watcher more, of values that must not go that way. Its number.

        least: in units of the values; smaller changes are none.
        """
        self._sides.append(side)
        self._states.grow(1)
        parts = len(self._sides) * len(self._spans)
        for one in self._spans:
            one.add(_UP[side], least)
            one.alpha = min(1.0, self._per_value * one.span / parts)
        return len(self._sides) - 1

    @property
    def alphas(self) -> dict[int, float]:
        """Span -> rate of false alarms per mean over that many values, of one watcher."""
        return {one.span: one.alpha for one in self._spans}

    def update(self, values_N: Floats) -> list[Finding]:
        """Take one value of each watcher; NaN where there is none.

        A watcher with enough evidence starts again, over all its spans. It is a finding where a state begins.
        """
        which_M = np.flatnonzero(np.isfinite(values_N))
        self.back = []
        if not len(which_M):
            return []
        first: dict[int, Finding] = {}
        for one in self._spans:
            for finding in one.update(which_M, values_N[which_M]):
                first.setdefault(finding.watcher, finding)
        if first:
            self.restart(list(first))
        self._end(self._states.value(which_M, values_N[which_M]))
        return [one for one in first.values() if one.watcher not in self.back and self._is_new(one)]

    def _is_new(self, finding: Finding) -> bool:
        (span,) = (one for one in self._spans if one.span == finding.span)
        is_new = self._states.is_new(finding.watcher, span.span, span.levels(finding.watcher))
        for one in self._spans if is_new else ():
            one.begin_state(finding.watcher)
        return is_new

    def _end(self, back: list[int]) -> None:
        """What these have raised is over, and no part of what is usual."""
        self.back = back
        for watcher in back:
            for one in self._spans:
                one.end_state(watcher, self._states.lasted(watcher))
        self._states.end(back)
        self.restart(back)

    def restart(self, watchers: Sequence[int]) -> None:
        """Let go of what speaks for an alarm of these; what is expected of their values stays."""
        for one in self._spans:
            one.detector.restart(np.asarray(watchers, np.intp))

    def power(self, watcher: int, values: int = 16, seed: int = 0) -> list[Power]:
        """Of each span, as it is now."""
        return [one.power(watcher, values, seed) for one in self._spans]

    def power_over(self, watcher: int, at: int, values: int = 16, seed: int = 0) -> Power:
        """Of one of the spans; all of them take three times as long."""
        return self._spans[at].power(watcher, values, seed)
