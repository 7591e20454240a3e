"""Births that are one: two lives of an SAE that share what appeared, or lives of two SAEs of one stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from asys_bench.change.timeline.earlier import cosine, shared, unpacked
from asys_bench.change.timeline.histories import FOUND_AFTER_SHARE
from asys_bench.rundir.timeline_document import FeatureLife, Timeline

SAME_COSINE = 0.8
"""Two decoder rows of two SAEs are of one feature above it."""
TWIN_COSINE = 0.5
"""Two decoder rows of one SAE that were born at one time have split one feature above it: directions that
have nothing in common are at 1 / sqrt(D) of each other."""
SAME_TIME = FOUND_AFTER_SHARE
"""And were born at one time within this share of the run."""


def without_twins(lives: list[FeatureLife], span: int) -> list[FeatureLife]:
    """Mark births that are one with another, more useful one: their directions or what appeared with them
    are alike. Useful is what makes the most of all rows, so that a whole stands for its parts. A direction
    that the SAE leaves over gives way to its features."""
    born = [one for one in lives if one.verdict == "born"]
    born.sort(key=lambda one: (one.unread, -one.usefulness * one.rate_after, -one.usefulness))
    twin: dict[int, int] = {}
    direction = [unpacked(one.direction) for one in born]
    appeared = [unpacked(one.appeared) for one in born]
    for at, one in enumerate(born):
        for before in range(at):
            other = born[before]
            if other.feature in twin or not at_one_time(one, other, span):
                continue
            alike = cosine(direction[at], direction[before])
            if max(alike, cosine(appeared[at], appeared[before])) >= TWIN_COSINE:
                twin[one.feature] = other.feature
                break
    return [replace(one, duplicate_of=twin.get(one.feature)) for one in lives]


def at_one_time(one: FeatureLife, other: FeatureLife, span: int) -> bool:
    if one.born_step is None or other.born_step is None:
        return False
    return abs(one.born_step - other.born_step) <= SAME_TIME * max(1, span)


def marked_robust(timeline: Timeline, others: Sequence[Timeline]) -> Timeline:
    """Its births of now say whether one of these SAEs of the same stream saw them too."""
    span = timeline.last_step - timeline.first_step
    marked = [
        replace(life, robust=any(_sees(other, life, span) for other in others))
        if _is_of_now(life)
        else life
        for life in timeline.lives
    ]
    return replace(timeline, lives=tuple(marked))


def _is_of_now(one: FeatureLife) -> bool:
    return one.verdict == "born" and one.look_step is None


def _sees(other: Timeline, life: FeatureLife, span: int) -> bool:
    return any(
        _is_of_now(theirs)
        and at_one_time(life, theirs, span)
        and shared(life.direction, theirs.direction) >= SAME_COSINE
        for theirs in other.lives
    )
