"""Moments: the tags of the model's forward calls of late, so that a label finds the call that it is of.

Filled by the clock when an outermost call ends, while labels are wanted (`capture.labels`). Everybody
holds the clock's lock.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque

import numpy as np
import numpy.typing as npt

from asys_bench.capture.tags.text import RowTokens, Text

MOST_MOMENTS = 1 << 16
"""Calls that are remembered at most; about 250 bytes each."""
_TEXTS_REMEMBERED = 32
_MOST_UPDATES = 1 << 12


class Moment:
    """One forward call.

    tags: as of packets (`capture.tags.clock.Tags`).
    shape, tokens: of its text, [B, T] and which of these are tokens; None: it had none, or its text is
        forgotten (`has_text`).
    rate: of the calls under these tags, as many were captured by at least one hook; 0.0: this one by none.
        None: not asked yet.
    """

    __slots__ = ("has_text", "rate", "shape", "tags", "tokens")

    def __init__(self, tags: tuple[int, int, int, int], text: Text | None = None) -> None:
        self.tags = tags
        self.has_text = text is not None
        self.shape: tuple[int, int] | None = None
        self.tokens: RowTokens | None = None
        if text is not None:  # not the text itself: the host's tensors are not kept
            self.shape = text.shape
            self.tokens = RowTokens(text.number, text.kept, text.position, text.real_BT)
        self.rate: float | None = None


class Moments:
    """Calls of the last `horizon` host steps.

    horizon: as given. noted_to: no call of a later host step is remembered; -1: none at all.
    last: the newest; None while no call of the model as a whole has ended.
    """

    __slots__ = (
        "_by_step", "_count", "_texts", "_updated_at", "_versions", "horizon", "last", "noted_to",
    )  # fmt: skip

    def __init__(self, horizon: int) -> None:
        self.horizon = horizon
        self._by_step: dict[int, list[Moment]] = {}
        self._texts: deque[Moment] = deque()
        self._count = 0
        self.noted_to = -1
        self._updated_at: list[int] = []
        self._versions: list[int] = []
        self.last: Moment | None = None

    def ended(self, moment: Moment) -> None:
        """An outermost call has returned."""
        if moment.has_text:
            self._texts.append(moment)
            if len(self._texts) > _TEXTS_REMEMBERED:
                old = self._texts.popleft()
                old.shape = old.tokens = None
        self.last = self.note(moment)

    def note(self, moment: Moment) -> Moment:
        """Remember it for `find`."""
        step = moment.tags[0]
        self.noted_to = max(self.noted_to, step)
        self._by_step.setdefault(step, []).append(moment)
        self._count += 1
        while self._by_step and (
            self._count > MOST_MOMENTS or next(iter(self._by_step)) < step - self.horizon
        ):
            self._count -= len(self._by_step.pop(next(iter(self._by_step))))
        return moment

    def updated(self, step: int, version: int) -> None:
        """The weights are of `version` from here on, in the host's step `step`."""
        steps, versions = self._updated_at, self._versions
        if steps and steps[-1] == step:
            versions[-1] = version
            return
        steps.append(step)
        versions.append(version)
        if len(steps) > 2 * _MOST_UPDATES:
            del steps[:_MOST_UPDATES], versions[:_MOST_UPDATES]

    def version_at(self, step: int) -> int | None:
        """The version of the weights at the end of `step`; None: not known any more."""
        place = bisect_right(self._updated_at, step)
        return self._versions[place - 1] if place else None

    def versions_at(self, steps_P: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
        """`version_at` of each; None: not of all."""
        places_P = np.searchsorted(self._updated_at, steps_P, side="right")
        if places_P.min() == 0:
            return None
        versions_P: npt.NDArray[np.int64] = np.array(self._versions)[places_P - 1]
        return versions_P

    def find(self, step: int, microbatch: int | None) -> Moment | None:
        """The last call of that host step, or of this microbatch in it."""
        for moment in reversed(self._by_step.get(step, ())):
            if microbatch is None or moment.tags[2] == microbatch:
                return moment
        return None
