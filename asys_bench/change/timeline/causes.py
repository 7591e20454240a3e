"""Why a feature was born: the host learnt it, or its data changed.

Where the rows come from the training itself, both look alike. On the constant evaluation batch the inputs
are the same at each moment, so that only the host can have changed: "learnt" is claimed from there alone.
Moments take the place of units, and the null permutes them. But moments of a host that drifts are not
independent: one row that begins to fire for good at one of them has as small a p-value as a hundred. What is
independent is the rows, so that some of them have to show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from asys_bench.change.reservoir.rows import ReservoirRows
from asys_bench.change.statistics import BIRTH_RATIO, declared, presence, rises
from asys_bench.change.timeline.firing import Firing
from asys_bench.change.timeline.histories import (
    FOLLOWED_SHARE,
    FOUND_AFTER_SHARE,
    LEAST_FIRED,
    History,
    Verdict,
)

LEAST_ROWS = 5
"""Of the batch that fire more often since then, beyond those that fire less often. Of a model that has learnt
its task and is trained on at a tenth of the rate, 17 features had one or two."""
SPACINGS = 1.5
"""A birth between two moments is seen at the second."""


class Cause(StrEnum):
    LEARNT = "learnt"
    DATA = "data"
    OPEN = "open"


@dataclass(frozen=True)
class ConstantBatch:
    """Counts of the SAE's features at M moments, of which each has the same rows."""

    step_M: npt.NDArray[np.int64]
    counts_MF: npt.NDArray[np.int32]
    moment_N: npt.NDArray[np.int64]
    """Of each row which moment it is of; -1: of one that is left out."""
    place_N: npt.NDArray[np.int64]
    """And which row of the batch it is."""
    found: Firing
    rows: int

    def rising_rows(self, feature: int, before: int) -> int:
        """In how many rows of the batch it fires more often after `before` moments, less those in which it
        fires less often."""
        fired_N = self.found.rows_of(feature)
        fired_N = fired_N[self.moment_N[fired_N] >= 0]
        late_N, place_N = self.moment_N[fired_N] >= before, self.place_N[fired_N]
        early_R = np.bincount(place_N[~late_N], minlength=self.rows) / before
        late_R = np.bincount(place_N[late_N], minlength=self.rows) / (len(self.step_M) - before)
        return int((late_R > early_R).sum() - (late_R < early_R).sum())


def constant_batch(rows: ReservoirRows, found: Firing) -> ConstantBatch | None:
    """Of the reservoir's constant rows, in time order; moments that are not whole are left out. None
    where fewer than two are left."""
    step_N = rows.host_step
    steps, moment_N, sizes = np.unique(step_N, return_inverse=True, return_counts=True)
    if not len(steps):
        return None
    usual = np.bincount(sizes).argmax()
    whole = sizes == usual
    if whole.sum() < 2:
        return None
    number_M = np.where(whole, np.cumsum(whole) - 1, -1)
    begin_M = np.cumsum(sizes) - sizes
    return ConstantBatch(
        steps[whole].astype(np.int64),
        found.counts(moment_N, len(steps))[whole],
        number_M[moment_N].astype(np.int64),
        np.arange(len(step_N)) - begin_M[moment_N],
        found,
        int(usual),
    )


def with_causes(
    told: Sequence[History], batch: ConstantBatch | None, first: int, last: int
) -> list[tuple[History, Cause | None, float | None]]:
    """(history, cause of its birth, the step at which the constant batch shows it) of each life."""
    if batch is None:
        return [(one, Cause.OPEN if one.verdict is Verdict.BORN else None, None) for one in told]
    scan = rises(presence(batch.counts_MF))
    total_F, moments = batch.counts_MF.sum(0), len(batch.step_M)
    up_to_MF = np.cumsum(batch.counts_MF, axis=0)
    at_F = np.maximum(scan.before_F, 1)
    hits_F = np.where(scan.before_F > 0, up_to_MF[at_F - 1, np.arange(len(at_F))], 0)
    before_F = hits_F / at_F
    after_F = (total_F - hits_F) / np.maximum(moments - scan.before_F, 1)
    rising_F = (before_F <= BIRTH_RATIO * after_F) & (total_F >= LEAST_FIRED)
    learnt_F = declared(np.where(rising_F, scan.p_F, 1.0))
    gap = float(np.diff(batch.step_M).max()) if len(batch.step_M) > 1 else 0.0
    reach = max(FOUND_AFTER_SHARE * (last - first), SPACINGS * gap)
    return [
        _cause(one, batch, bool(learnt_F[one.feature]), int(scan.before_F[one.feature]), reach)
        for one in told
    ]


def _cause(
    one: History, batch: ConstantBatch, learnt: bool, before: int, reach: float
) -> tuple[History, Cause | None, float | None]:
    shown = None
    inside = 0 < before < len(batch.step_M)
    if learnt and inside and batch.rising_rows(one.feature, before) >= LEAST_ROWS:
        shown = float(batch.step_M[before - 1] + batch.step_M[before]) / 2
    if one.verdict in (Verdict.ALWAYS, Verdict.SILENT, Verdict.GRADUAL) and shown is not None:
        # The stream has too few independent rows, other ones, or is slower; the constant batch is clear.
        low, high = float(batch.step_M[before - 1]), float(batch.step_M[before])
        born = replace(one, verdict=Verdict.BORN, born_step=shown, born_low=low, born_high=high)
        return replace(born, late_by_steps=None), Cause.LEARNT, shown
    if one.verdict is not Verdict.BORN:
        return one, None, shown
    assert one.born_low is not None
    assert one.born_high is not None
    if shown is not None and one.born_low - reach <= shown <= one.born_high + reach:
        return one, Cause.LEARNT, shown
    earlier_M = batch.step_M < one.born_low
    counts_M = batch.counts_MF[:, one.feature]
    if earlier_M.any() and not earlier_M.all():
        before_rate, after_rate = counts_M[earlier_M].mean(), counts_M[~earlier_M].mean()
        enough = counts_M[earlier_M].sum() >= LEAST_FIRED
        if enough and before_rate >= FOLLOWED_SHARE * after_rate:
            return one, Cause.DATA, shown
    return one, Cause.OPEN, shown
