"""Which rows a probe copies at all. The call that they are of decides, so that packets of other calls, of
rows and of labels, are left unread.

A call has one number v in [0, 1), a hash of its tags (`contracts.coin.toss`) that is the same for all hooks.
Rows of a small packet have the draw u = v: they are taken together or left. Rows of a large one share the
first digit of v in base `STRATA` and draw the rest: of few packets many rows are taken. Either way u is
uniform and says nothing of what is in a row, which is all that `window` asks for.
"""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

SMALL_ROWS = 64
STRATA = 16
RENEWED_S = 60.0
"""A window that is full is renewed in this time at the fastest."""
MOST_READ = 0.125
"""Of the rows of a stream that renews it faster. Rows of a rare class are kept more often as far as this
allows: the labels of a row say what it is of, and are read with it."""
_MARGIN = 1.25
"""How far limits may move between a row and its label."""
Floats = npt.NDArray[np.float64]


def may_be_in(call_N: float | Floats, limit: float) -> npt.NDArray[np.bool_]:
    """Whether a hook of that `Gate.limit` takes rows of the calls with these numbers, or will do so if the
    limit moves a little."""
    stratum_N = np.floor(np.multiply(call_N, STRATA))
    found_N: npt.NDArray[np.bool_] = stratum_N < _MARGIN * limit * STRATA
    return found_N


class Gate:
    """Of one hook whose window holds `capacity` rows.

    pace: share of rows that are let in so that a full window is renewed no faster than `RENEWED_S`.
    limit: rows whose draw is below it are let in.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.pace, self.limit = capacity, 1.0, 1.0
        self._from, self._rows = time.monotonic(), 0
        self._share, self._boost = 1.0, 1.0

    def draws(self, call: float, rows: int, random: np.random.Generator) -> Floats | None:
        """The draw of each row of a packet; None: none is let in. call: its number."""
        if rows <= SMALL_ROWS:
            return np.full(rows, call) if call < self.limit else None
        stratum = int(call * STRATA)
        if stratum >= self.limit * STRATA:
            return None
        draw_N: Floats = (stratum + random.random(rows)) / STRATA
        return draw_N

    def takes(self, call_N: Floats, rows_N: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Of which packets any row may be let in. call_N, rows_N: the number of the call, and rows."""
        stratum_N = np.floor(call_N * STRATA)
        found_N: npt.NDArray[np.bool_] = np.where(
            rows_N <= SMALL_ROWS, call_N < self.limit, stratum_N < self.limit * STRATA
        )
        return found_N & (rows_N > 0)

    def count(self, rows: int, share: float, *, is_full: bool) -> None:
        """So many rows came: keep the pace. share, is_full: of the window."""
        self._rows += rows
        now = time.monotonic()
        passed = now - self._from
        if passed < 1.0:
            return
        if is_full:
            rate = self._rows / passed * share
            self.pace = min(1.0, self.capacity / RENEWED_S / max(rate, 1e-9))
            self.want(self._share, self._boost)
        self._from, self._rows = now, 0

    def want(self, share: float, boost: float = 1.0) -> None:
        """Windows take rows whose draw, divided by the pace, is below `share`, or `boost` times that."""
        self._share, self._boost = share, boost
        usual = share * self.pace
        self.limit = usual * boost if self.pace >= 1 else max(usual, min(usual * boost, MOST_READ))

    @property
    def reach(self) -> float:
        """Draws over the pace are below it, of rows that are let in."""
        return self.limit / self.pace
