"""The search over one SAE's features: by name, note, words and strongest tokens."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from asys_bench.eye.features import Document, Features
from asys_bench.eye.haystack import Haystack, needle
from asys_bench.eye.marks import Mark
from asys_bench.eye.proposed import Names, called, names_of
from asys_bench.eye.watch import plain

FOUND, MOST_WORDS = 200, 20
_Hit = tuple[int, float, int, str]
"""(what is shown first, -density, feature, where it was found)."""


class Finder:
    """features: None where nothing is known of them but names."""

    def __init__(self, label: str, d_sae: int, features: Features | None) -> None:
        self._label, self._d_sae, self._features = label, d_sae, features
        self._tokens = features.top_tokens() if features is not None else []
        self._words = features.words() if features is not None else []
        self._density_F = np.zeros(d_sae) if features is None else features.density_F
        # Where there are tokens, a feature is called by its first.
        has_tokens = any(self._tokens)
        self._haystack = Haystack(self._tokens if has_tokens else [[one] for one in self._words])

    def find(self, text: str, marks: Mapping[int, Mark], names: Names) -> list[Document]:
        """Features whose name, note, words or strongest tokens hold `text`, whatever its case.

        Names first, then features whose very token it is, then the others; the more often firing first. Of a
        text of several words that nothing holds, each word by itself.
        """
        wanted = needle(text)
        if not wanted:
            return []
        hits = self._by_name(wanted, marks, names)
        named = {number for _, _, number, _ in hits}
        exact = self._first(self._haystack.exactly(wanted), named)
        others = self._first(self._haystack.features(wanted), named | set(exact))
        for rank, where, numbers in (
            (2, "its very token", exact),
            (3, "among what it fires on most", others),
        ):
            hits += [(rank, -float(self._density_F[number]), number, where) for number in numbers]
        hits = heapq.nsmallest(FOUND, hits or self._by_words(wanted))
        return [{**self.told(number, marks, names), "where": where} for _, _, number, where in hits]

    def _first(self, found_N: npt.NDArray[Any], without: set[int]) -> list[int]:
        """The first `FOUND` of these features: those that fire more often."""
        order_N = np.argsort(-self._density_F[found_N], kind="stable")
        numbers = found_N[order_N].tolist()
        return list(islice((number for number in numbers if number not in without), FOUND))

    def _by_name(self, wanted: str, marks: Mapping[int, Mark], names: Names) -> list[_Hit]:
        own = [
            number
            for number, mark in marks.items()
            if number < self._d_sae and wanted in f"{mark.name}\n{mark.note}".casefold()
        ]
        proposed = [
            number
            for number, one in names.items()
            if wanted in one.name.casefold() and number not in own and not called(number, marks)
        ]
        return [
            *((0, -float(self._density_F[number]), number, "name or note") for number in own),
            *(
                (1, -float(self._density_F[number]), number, "its proposed name")
                for number in proposed
            ),
        ]

    def _by_words(self, wanted: str) -> list[_Hit]:
        """Of a longer text: features whose very token is one of its words, those of more words first."""
        words = list(dict.fromkeys(wanted.split()))[:MOST_WORDS]
        found: dict[int, list[str]] = {}
        for word in words if len(words) > 1 else ():
            for number in self._haystack.exactly(word).tolist():
                found.setdefault(number, []).append(word)
        return [
            (
                -len(held),
                -float(self._density_F[number]),
                number,
                f"its very token: {', '.join(held)}",
            )
            for number, held in found.items()
        ]

    def told(self, number: int, marks: Mapping[int, Mark], names: Names) -> Document:
        """A feature in a list: what it is called, what it fires on, how often, how strongly at most."""
        found: Document = {"sae": self._label, "feature": number, **names_of(number, marks, names)}
        if self._features is None:
            return {**found, "words": "", "tokens": [], "density": 0.0, "max": None}
        return {
            **found,
            "words": self._words[number],
            "tokens": list(self._tokens[number])[:6],
            "density": plain(float(self._density_F[number])),
            "max": plain(float(self._features.max_F[number])),
        }
