"""Which undecided cases go on after a look: the rounds so far are the pilot of those to come. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_HOPELESS = 4.0
"""A pilot's guess of the rounds that are needed is off by as much; where it is more than that many times what
a case may still have, none are spent on it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A case that its last look left open."""

    name: str
    rounds: int
    """Until its next look."""
    most: int
    """Until its last look."""
    needs: int | None
    """About so many rounds decide the first of its open targets; None: nothing is known of some."""
    round_s: float
    """A round of it took, with those of its references."""

    @property
    def hopeless(self) -> str | None:
        """Why no more rounds are spent on it, whatever time there is."""
        if self.needs is None or self.needs <= _HOPELESS * self.most:
            return None
        return f"{self.name}: no more rounds: {self.most} would hardly decide what needs about {self.needs}"

    @property
    def late(self) -> str:
        """It does not go on because of the time."""
        return (
            f"{self.name}: no more rounds: {self.rounds} take {self.rounds * self.round_s:.0f} s, "
            "which the suite's budget_s leaves no room for"
        )


def affordable(candidates: Iterable[Candidate], left_s: float | None) -> list[Candidate]:
    """Those that go on, as long as they end within `left_s`: first those that the pilot says are decided in
    the fewest seconds, whether they would pass or fail.

    left_s: None: all go on.
    """
    chosen = []
    for one in sorted(candidates, key=lambda one: (one.needs or one.rounds) * one.round_s):
        if left_s is not None:
            left_s -= one.rounds * one.round_s
            if left_s < 0:
                break
        chosen.append(one)
    return chosen
