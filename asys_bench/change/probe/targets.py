"""What a label is for a probe, classes or a number, as its values tell; and which of its classes are rare."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

Kind = Literal["class", "number"]
MOST_CLASSES, MOST_TEXTS = 16, 64
LEAST_ROWS = 64
"""Labelled rows from which on a label's kind is told."""
RARE, MOST_BOOST = 0.1, 16.0
"""A class of a smaller share is rare: its rows are kept more often, at most so many times."""
_MOST_VALUES = 256
_FORGET_AT = 1 << 20
Floats = npt.NDArray[np.float64]


@dataclass
class Target:
    """One label of one hook.

    asked: the kind that the configuration names. counts: of its values, while they are few.
    """

    name: str
    asked: Kind | None = None
    counts: dict[float, float] = field(default_factory=dict)
    rows: int = 0
    _is_number: bool = False

    def saw(self, value_N: Floats) -> None:
        """Values of rows as they come; NaN is none."""
        value_N = value_N[np.isfinite(value_N)]
        self.rows += len(value_N)
        if self._is_number or not len(value_N):
            return
        values, counts = np.unique(value_N, return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            self.counts[value] = self.counts.get(value, 0.0) + count
        whole = bool((values == np.floor(values)).all())
        if self.asked != "class" and (not whole or len(self.counts) > _MOST_VALUES):
            self._is_number = True
            self.counts.clear()
        elif len(self.counts) > _MOST_VALUES:
            self.counts = dict.fromkeys(self._frequent(_MOST_VALUES // 2), 0.0) | {
                value: self.counts[value] for value in self._frequent(_MOST_VALUES // 2)
            }
        if sum(self.counts.values()) > _FORGET_AT:
            self.counts = {value: count / 2 for value, count in self.counts.items()}

    @property
    def kind(self) -> Kind | None:
        """None: too few rows came to tell."""
        if self.asked is not None:
            return self.asked
        if self._is_number:
            return "number"
        if self.rows < LEAST_ROWS:
            return None
        most = MOST_TEXTS if min(self.counts) >= 1 << 47 else MOST_CLASSES
        return "class" if len(self.counts) <= most else "number"

    @property
    def classes(self) -> list[float]:
        """The values that are classes, in ascending order; of more than `MOST_TEXTS` the most frequent."""
        return sorted(self._frequent(MOST_TEXTS))

    def boost(self, value_N: Floats) -> Floats:
        """How much more often than others each row is kept."""
        found = np.ones(len(value_N))
        total = sum(self.counts.values())
        if self.kind != "class" or not total:
            return found
        for value, count in self.counts.items():
            share = count / total
            if share < RARE:
                found[value_N == value] = min(MOST_BOOST, RARE / share)
        return found

    @property
    def most_boost(self) -> float:
        """Of any value that came so far."""
        total = sum(self.counts.values())
        if self.kind != "class" or not total:
            return 1.0
        least = min(self.counts.values()) / total
        return min(MOST_BOOST, max(1.0, RARE / max(least, 1e-12)))

    def _frequent(self, most: int) -> list[float]:
        return sorted(self.counts, key=lambda value: -self.counts[value])[:most]
