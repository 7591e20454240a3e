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
_MARGIN = 2.0
"""How far limits may move between a row and its label."""
Floats = npt.NDArray[np.float64]


def may_be_in(call: float, limit: float) -> bool:
    """Whether a hook of that `Gate.limit` takes rows of the call with this number, or will do so if the
    limit moves a little."""
    return int(call * STRATA) < _MARGIN * limit * STRATA


class Gate:
    """Of one hook whose window holds `capacity` rows.

    pace: share of rows that are let in so that a full window is renewed no faster than `RENEWED_S`.
    limit: rows whose draw is below it are let in.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.pace, self.limit = capacity, 1.0, 1.0
        self._from, self._rows = time.monotonic(), 0
        self._wanted = 1.0

    def draws(self, call: float, rows: int, random: np.random.Generator) -> Floats | None:
        """The draw of each row of a packet; None: none is let in. call: its number."""
        if rows <= SMALL_ROWS:
            return np.full(rows, call) if call < self.limit else None
        stratum = int(call * STRATA)
        if stratum >= self.limit * STRATA:
            return None
        draw_N: Floats = (stratum + random.random(rows)) / STRATA
        return draw_N

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
            self.want(self._wanted)
        self._from, self._rows = now, 0

    def want(self, wanted: float) -> None:
        """Windows take rows whose draw, divided by the pace, is below `wanted`."""
        self._wanted = wanted
        self.limit = wanted * self.pace
