"""What became of each life: born, gradual, turned, gone, always there, silent. Pure functions of counts.

A life is *born* where its firing rate rose from nearly nothing (`statistics`), declared at `FDR` over all
lives. It is *gone* where the rate fell so, looked for first and with the same test on the run read
backwards: of a life that is gone, the birth is looked for in what is before.

The pass uses the weights of now. Where the trainer's own sums say that the life fired as strongly before
the birth as after it, with its weights of then, it was another feature before: one that the SAE followed
while it moved, or one that it gave up for this. What moves comes gradually, stronger and stronger under
the weights of now: a rise that is not sharp is no birth. The life is *turned* if it was as strong before,
and *gradual* if not: what it reads moved there from other lives, or came slowly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from asys_bench.change.statistics import (
    BIRTH_RATIO,
    FDR,
    Place,
    declared,
    place_of_rise,
    presence,
    rises,
)
from asys_bench.change.timeline.firing import Firing
from asys_bench.change.timeline.units import Units
from asys_bench.sae.checkpoint.lives import Lives

LEAST_FIRED = 5
"""Rows: of a life that fired in fewer nothing is said."""
FOLLOWED_SHARE = 0.5
"""A life whose energy before its birth, with its weights of then, was half of its later one was followed."""
SHARP_SHARES = (0.8, 0.93)
"""The first tenth of the rows since a sharp birth fires as strongly as all of them but for `SHARP_ERRORS`
standard errors: at the first share of their strength at least, and no more than the second is asked. What
turns has come a good part of its way before it fires. Of features that turned over 30 % of the run the first
tenth was at 0.80 to 0.93, so that at 0.8 alone 7 of 9 were births."""
SHARP_ERRORS = 2.0
LEAST_FIRST = 8
"""Rows of which that tenth consists at least."""
FOUND_AFTER_SHARE = 0.02
"""Of the run: a life that the SAE began so much later than the birth was found late."""


class Verdict(StrEnum):
    ALWAYS = "always"
    BORN = "born"
    GRADUAL = "gradual"
    TURNED = "turned"
    SILENT = "silent"


@dataclass(frozen=True)
class History:
    """Of one life over the run. Steps are the host's; None: there is none."""

    feature: int
    verdict: Verdict
    fired: int
    """Rows of the reservoir in which it fired."""
    generation: int = 0
    found_step: int = 0
    """When the SAE's life began."""
    born_step: float | None = None
    born_low: float | None = None
    born_high: float | None = None
    born_p: float = 1.0
    died_step: float | None = None
    rate_before: float = 0.0
    rate_after: float = 0.0
    late_by_steps: float | None = None
    """How much later than the birth (or the begin of what the reservoir has) the SAE found it; None: it
    was not late."""
    birth_cosine: float = 1.0
    """Of the decoder now and when the SAE's life began."""


def histories(
    found: Firing, units: Units, step_R: npt.NDArray[np.int64], lives: Lives | None
) -> list[History]:
    """A history for each feature. step_R: host step of each row, ascending; lives: None: not known. Features
    beyond those of `lives` have none."""
    features = found.features
    present_UF = presence(found.counts(units.of_row, units.count))
    scan_down = _eligible(rises(present_UF[::-1]).p_F, found, backwards=True)
    gone_F = declared(scan_down.p_F)
    up = _eligible(rises(present_UF).p_F, found)
    for feature in np.flatnonzero(gone_F).tolist():
        up = _within(up, found, feature, present_UF, units, scan_down.place[feature])
    born_F = declared(up.p_F)
    first, last = (int(step_R[0]), int(step_R[-1])) if len(step_R) else (0, 0)
    told = []
    for feature in range(features):
        fired = int(found.total[feature])
        own = lives if lives is not None and feature < lives.features else None
        history = History(
            feature,
            Verdict.ALWAYS if fired >= LEAST_FIRED else Verdict.SILENT,
            fired,
            generation=int(own.generation[feature]) if own is not None else 0,
            found_step=int(own.born_host_step[feature]) if own is not None else 0,
            birth_cosine=float(own.birth_cosine[feature]) if own is not None else 1.0,
            born_p=float(up.p_F[feature]),
        )
        if gone_F[feature]:
            backwards = scan_down.place[feature]
            history = replace(history, died_step=_step_at(len(step_R) - backwards.row, step_R))
        if born_F[feature]:
            place = up.place[feature]
            history = replace(
                history,
                verdict=Verdict.BORN,
                born_step=_step_at(place.row, step_R),
                born_low=_step_at(place.low, step_R),
                born_high=_step_at(place.high, step_R),
                rate_before=place.rate_before,
                rate_after=place.rate_after,
            )
            if not _is_sharp(found, feature, place.row):
                followed = own is not None and was_followed(own, feature, history, first, last)
                verdict = Verdict.TURNED if followed else Verdict.GRADUAL
                history = replace(history, verdict=verdict)
        told.append(_with_delay(history, first, last))
    return told


def _with_delay(history: History, first: int, last: int) -> History:
    begin = history.born_step if history.verdict is Verdict.BORN else float(first)
    if history.verdict not in (Verdict.BORN, Verdict.ALWAYS) or begin is None:
        return history
    late = history.found_step - begin
    if history.generation and late > FOUND_AFTER_SHARE * max(1, last - first):
        return replace(history, late_by_steps=late)
    return history


@dataclass
class _Scan:
    """p-values, of lives that can be births alone; where each of those rose."""

    p_F: npt.NDArray[np.float64]
    place: dict[int, Place]


def _eligible(p_F: npt.NDArray[np.float64], found: Firing, *, backwards: bool = False) -> _Scan:
    """p = 1 for lives whose rate did not rise from nearly nothing."""
    scan = _Scan(np.ones(len(p_F)), {})
    for feature in np.flatnonzero(p_F <= FDR).tolist():
        rows = found.rows_of(feature)
        if backwards:
            rows = found.rows - 1 - rows[::-1]
        place = place_of_rise(rows, found.rows)
        if len(rows) >= LEAST_FIRED and place.rate_before <= BIRTH_RATIO * place.rate_after:
            scan.p_F[feature], scan.place[feature] = p_F[feature], place
    return scan


def _within(
    up: _Scan,
    found: Firing,
    feature: int,
    present_UF: npt.NDArray[np.bool_],
    units: Units,
    gone: Place,
) -> _Scan:
    """The birth of a life that is gone, in the rows before its end."""
    rows = found.rows_of(feature)
    end = min(found.rows, max(1, round(found.rows - gone.row)))
    whole = int(units.of_row[end - 1])  # its last unit may be half after the end
    place = place_of_rise(rows[rows < end], end)
    up.p_F[feature] = 1.0
    up.place.pop(feature, None)
    if whole >= 2 and place.rate_before <= BIRTH_RATIO * place.rate_after:
        up.p_F[feature] = rises(present_UF[:whole, feature : feature + 1]).p_F[0]
        up.place[feature] = place
    return up


def _is_sharp(found: Firing, feature: int, born_row: float) -> bool:
    """Whether the life was as strong right after the row of its birth as later."""
    since = found.values_of(feature)[found.rows_of(feature) >= born_row]
    begin = since[: max(LEAST_FIRST, len(since) // 10)]
    if not len(begin):
        return False
    usual = float(since.mean())
    error = float(since.std()) / (usual * math.sqrt(len(begin)))
    least = float(np.clip(1 - SHARP_ERRORS * error, *SHARP_SHARES))
    return float(begin.mean()) >= least * usual


def _step_at(row: float, step_R: npt.NDArray[np.int64]) -> float:
    """Of a place between rows, which need not be one of them."""
    row = min(max(row, 0.0), len(step_R) - 1.0)
    before = int(row)
    after = min(before + 1, len(step_R) - 1)
    return float(step_R[before] + (row - before) * (step_R[after] - step_R[before]))


def was_followed(lives: Lives, feature: int, born: History, first: int, last: int) -> bool:
    """Whether the life fired before its birth about as strongly as after it, with its weights of then."""
    assert born.born_step is not None
    assert born.born_low is not None
    if born.found_step >= born.born_low:
        return False
    begin_W = lives.window_step.numpy()
    end_W = np.append(begin_W[1:], last + 1)
    energy_W = lives.energy[:, feature].numpy().astype(np.float64)
    rows_W = lives.window_rows.numpy().astype(np.float64)
    settle = FOUND_AFTER_SHARE * max(1, last - first)
    before_W = (begin_W >= born.found_step) & (end_W <= born.born_low)
    after_W = begin_W >= born.born_step + settle
    if born.died_step is not None:
        after_W &= end_W <= born.died_step
    if not rows_W[before_W].sum() or not rows_W[after_W].sum():
        return False
    before = energy_W[before_W].sum() / rows_W[before_W].sum()
    after = energy_W[after_W].sum() / rows_W[after_W].sum()
    return bool(before >= FOLLOWED_SHARE * after)
