"""Births of earlier looks at a run that goes on: kept, moved or withdrawn by the look of now.

A life that ends before the run does is in none of the SAE's weights at the end, so the newest look alone
would lose its birth. Each look therefore keeps those of the document before it, with the directions that
they had:

- The same life (feature, generation, and about the direction of then) is what this look, of more rows,
  says. Its birth is moved; where it came gradually or the SAE followed it, the birth is *withdrawn*, and
  the life says so.
- A birth that this look declares of another life with that direction, at that time, takes its place.
- What else there was stands, as of the look that saw it last.
"""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from dataclasses import asdict, replace

import numpy as np
import numpy.typing as npt
import torch

from asys_bench.change.timeline.histories import FOUND_AFTER_SHARE
from asys_bench.rundir.timeline_document import MOST_LIVES, FeatureLife, Timeline

SAME_COSINE = 0.5
"""Of decoder rows of one birth then and now: directions that have nothing in common are at 1 / sqrt(D) of
each other, and an SAE that learns turns a row by less."""
SAME_TIME = FOUND_AFTER_SHARE
"""And how far apart the two estimates of its step may be, as a share of the run."""
_MOVED = ("gradual", "turned")


def packed(direction_D: torch.Tensor) -> str:
    """A decoder row as `FeatureLife.direction`."""
    unit_D = torch.nn.functional.normalize(direction_D.detach().float(), dim=0)
    return base64.b64encode(unit_D.numpy().astype("<f2").tobytes()).decode()


def unpacked(direction: str) -> npt.NDArray[np.float32] | None:
    """float32[D]; None: it is none."""
    try:
        found = np.frombuffer(base64.b64decode(direction, validate=True), "<f2")
    except ValueError:
        return None
    unit_D: npt.NDArray[np.float32] = found.astype(np.float32)
    return unit_D if len(unit_D) and bool(np.isfinite(unit_D).all()) else None


def with_earlier(now: Timeline, before: Timeline, decoder_FD: torch.Tensor) -> Timeline:
    """The timeline of this look with what an earlier one of the same SAE found.

    decoder_FD: of the weights of now, whose rows have unit length.
    """
    if before.problem or before.last_step > now.last_step or before.features != now.features:
        return now
    table_FD = decoder_FD.detach().float().numpy()
    lives = {one.feature: one for one in now.lives}
    stands = []
    for one in before.lives:
        direction_D = unpacked(one.direction) if _is_sound(one) else None
        if direction_D is None or len(direction_D) != table_FD.shape[1]:
            continue
        mine = _same_life(one, lives, direction_D, table_FD)
        if mine is not None and mine.verdict in _MOVED:
            lives[mine.feature] = _withdrawn(mine, one)
        elif (mine is None or mine.verdict != "born") and not _is_told(
            one, now, direction_D, table_FD
        ):
            stands += [_standing(one, before, now)] if is_birth(one) else []
    return replace(now, lives=(*lives.values(), *stands)[:MOST_LIVES])


def is_birth(one: FeatureLife) -> bool:
    """Of this look or an earlier one, and no duplicate."""
    return one.verdict == "born" and one.duplicate_of is None and one.born_step is not None


def _is_sound(one: FeatureLife) -> bool:
    """A document may come from anywhere; one with a number that is not finite cannot be written again."""
    with suppress(ValueError):
        return bool(json.dumps(asdict(one), allow_nan=False))
    return False


def _same_life(
    one: FeatureLife,
    lives: dict[int, FeatureLife],
    direction_D: npt.NDArray[np.float32],
    table_FD: npt.NDArray[np.float32],
) -> FeatureLife | None:
    """The life of this look that an earlier one's is; of directions that are unread the most alike."""
    if one.unread:
        some = [mine for mine in lives.values() if mine.unread]
        mine = max(some, key=lambda mine: shared(mine.direction, one.direction), default=None)
    else:
        mine = lives.get(one.feature)
        if mine is not None and mine.generation != one.generation:
            return None
    if mine is None or _alike(mine, direction_D, table_FD) < SAME_COSINE:
        return None
    return mine


def _alike(
    mine: FeatureLife, direction_D: npt.NDArray[np.float32], table_FD: npt.NDArray[np.float32]
) -> float:
    """The cosine of a life of this look with a direction."""
    own_D = unpacked(mine.direction) if mine.unread else table_FD[mine.feature]
    return -1.0 if own_D is None else float(own_D @ direction_D)


def _withdrawn(mine: FeatureLife, one: FeatureLife) -> FeatureLife:
    """The life of now, of which an earlier look had called a step its birth."""
    step = one.born_step if is_birth(one) else one.withdrawn_step
    return mine if step is None else replace(mine, withdrawn_step=step, direction=one.direction)


def _is_told(
    one: FeatureLife,
    now: Timeline,
    direction_D: npt.NDArray[np.float32],
    table_FD: npt.NDArray[np.float32],
) -> bool:
    """Whether this look has the birth, as that of another life."""
    reach = SAME_TIME * max(1, now.last_step - now.first_step)
    return one.born_step is not None and any(
        abs((other.born_step or 0.0) - one.born_step) <= reach
        and (
            _alike(other, direction_D, table_FD) >= SAME_COSINE
            or shared(one.appeared, other.appeared) >= SAME_COSINE
        )
        for other in now.lives
        if is_birth(other)
    )


def shared(one: str, other: str) -> float:
    """The cosine of two packed directions; -1 where one is none."""
    return cosine(unpacked(one), unpacked(other))


def cosine(one_D: npt.NDArray[np.float32] | None, other_D: npt.NDArray[np.float32] | None) -> float:
    """Of two directions of unit length; -1 where one is none, or they are of two lengths."""
    if one_D is None or other_D is None or len(one_D) != len(other_D):
        return -1.0
    return float(one_D @ other_D)


def _standing(one: FeatureLife, before: Timeline, now: Timeline) -> FeatureLife:
    """A birth as an earlier look saw it; its curve ends there."""
    look_step = before.last_step if one.look_step is None else one.look_step
    steps = np.array([step for step in now.curve_steps if step <= look_step])
    known = np.array(before.curve_steps[: len(one.rates)])
    rates = np.interp(steps, known, one.rates) if len(known) and len(steps) else np.zeros(0)
    return replace(one, look_step=look_step, rates=tuple(np.round(rates, 6).tolist()))
