"""Which texts a name is made from, and which it is scored on.

A text is the tokens around one on which the feature fires. The strongest are shown to the model that
chooses the name. Held out are others on which it fires, of all its strengths, and as many tokens of other
features' texts on which it does not: not those of features that fire together with it. That one of these is
silent is likely and not known: of a feature that fires in one of 100 rows, one in 100 is not, which lowers
a score and never raises it.

Texts that share `SAME` tokens in a row with one that was shown are not held out: a name is no memory.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from asys_bench.eye.features import Features

SHOWN, HELD_OUT = 10, 10
LEAST_SHOWN, LEAST_HELD_OUT = 3, 5
SAME = 8
OWNERS = 256
"""Other features whose texts are asked for silent ones."""
MOST_TOKEN = 40
"""Characters of one token: a vocabulary is input."""


@dataclass(frozen=True)
class Window:
    """tokens: texts of them. at: the row's own. levels: activations, NaN where they are not known."""

    tokens: tuple[str, ...]
    at: int
    levels: tuple[float, ...]

    @property
    def token(self) -> str:
        return self.tokens[self.at]

    def runs(self) -> set[tuple[str, ...]]:
        """Every `SAME` tokens in a row; of a shorter text itself."""
        last = max(1, len(self.tokens) - SAME + 1)
        return {self.tokens[first : first + SAME] for first in range(last)}


@dataclass(frozen=True)
class Material:
    """Of one feature. shown: the strongest first. fires, silent: held out."""

    feature: int
    top_token: str
    shown: tuple[Window, ...]
    fires: tuple[Window, ...]
    silent: tuple[Window, ...]


class Pool:
    """Texts of all features of an SAE, from which silent ones are taken."""

    def __init__(self, features: Features, firing: Sequence[int], seed: str) -> None:
        """firing: features that have examples. seed: the same pool for the same one."""
        chosen = random.Random(seed).sample(list(firing), min(OWNERS, len(firing)))
        self._windows = [
            (owner, window)
            for owner in chosen
            for window in spread(windows_of(features.examples(owner, "random")), 3)
        ]

    def silent(self, feature: int, partners: Iterable[int], known: set[Any]) -> list[Window]:
        """Texts of features that do not fire with `feature`, in an order of its own. known: the tokens in a
        row of its own texts."""
        not_these = {feature, *partners}
        usable = [
            window
            for owner, window in self._windows
            if owner not in not_these and not window.runs() & known
        ]
        random.Random(feature).shuffle(usable)
        return distinct(usable, set())[:HELD_OUT]


def material_of(features: Features, feature: int, pool: Pool) -> Material | str:
    """Its texts; or why there are not enough."""
    top = windows_of(features.examples(feature, "top"))
    shown = distinct(top, set())[:SHOWN]
    if len(shown) < LEAST_SHOWN:
        return "fewer than 3 texts that differ"
    seen = set().union(*(window.runs() for window in shown))
    some = windows_of(features.examples(feature, "random"))
    fires = distinct([*some, *top], seen)
    fires = spread(fires, HELD_OUT)
    known = seen.union(*(window.runs() for window in fires))
    partners = [other for other, _, _ in features.cofiring(feature)]
    silent = pool.silent(feature, partners, known)
    if min(len(fires), len(silent)) < LEAST_HELD_OUT:
        return "too few other texts to score a name on"
    tops = features.top_tokens()
    top_token = tops[feature][0] if len(tops) > feature and tops[feature] else shown[0].token
    return Material(feature, top_token, tuple(shown), tuple(fires), tuple(silent))


def windows_of(examples: Iterable[dict[str, Any]]) -> list[Window]:
    """Of examples as `Features` gives them; those without tokens are left out."""
    found = []
    for one in examples:
        tokens, at = one.get("tokens"), one.get("at")
        if not tokens or at is None or not 0 <= at < len(tokens):
            continue
        levels = [float("nan") if level is None else float(level) for level in one["levels"]]
        texts = tuple(str(token)[:MOST_TOKEN] for token in tokens)
        found.append(Window(texts, int(at), tuple(levels)))
    return found


def distinct(windows: Iterable[Window], seen: set[tuple[str, ...]]) -> list[Window]:
    """Those that share no tokens in a row with an earlier one, or with `seen`."""
    found, seen = [], set(seen)
    for window in windows:
        runs = window.runs()
        if not runs & seen:
            found.append(window)
            seen |= runs
    return found


def spread(windows: Sequence[Window], count: int) -> list[Window]:
    """So many of them, evenly from the first to the last."""
    if len(windows) <= count:
        return list(windows)
    step = (len(windows) - 1) / max(1, count - 1)
    return [windows[round(step * number)] for number in range(count)]
