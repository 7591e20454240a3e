"""Search in what all features fire on: each different text is looked at once, which takes milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, overload

import numpy as np
import numpy.typing as npt


class Texts(Sequence[Sequence[str]]):
    """Some texts of each feature, such as its tokens; a text that many have is kept once.

    known: the different ones. number_FK: which of them each feature has, in its order; -1 after its last.
    """

    def __init__(self, known: Sequence[str], number_FK: npt.NDArray[np.integer[Any]]) -> None:
        self.known, self.number_FK = known, number_FK

    @classmethod
    def of(cls, lists: Sequence[Sequence[str]]) -> Texts:
        """The same of a list for each feature."""
        numbers: dict[str, int] = {}
        rows = [[numbers.setdefault(text, len(numbers)) for text in one] for one in lists]
        number_FK = np.full((len(rows), max(map(len, rows), default=0)), -1, np.int32)
        for its_K, row in zip(number_FK, rows, strict=True):
            its_K[: len(row)] = row
        return cls(list(numbers), number_FK)

    def __len__(self) -> int:
        return len(self.number_FK)

    @overload
    def __getitem__(self, which: int) -> list[str]: ...
    @overload
    def __getitem__(self, which: slice) -> list[list[str]]: ...
    def __getitem__(self, which: int | slice) -> list[str] | list[list[str]]:
        if isinstance(which, slice):
            return [self[feature] for feature in range(len(self))[which]]
        return [self.known[number] for number in self.number_FK[which].tolist() if number >= 0]


class Haystack:
    """texts: of each feature what can be found. Case does not count, nor do spaces at the ends of one."""

    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        told = texts if isinstance(texts, Texts) else Texts.of(texts)
        self._needles = [needle(text) for text in told.known]
        self._number_FK = told.number_FK

    def features(self, text: str) -> npt.NDArray[np.int64]:
        """Those of which a text holds `text`, ascending."""
        wanted = needle(text)
        return self._of([wanted in one for one in self._needles] if wanted else [])

    def exactly(self, text: str) -> npt.NDArray[np.int64]:
        """Those that have `text` itself among their texts."""
        wanted = needle(text)
        return self._of([wanted == one for one in self._needles] if wanted else [])

    def _of(self, held: list[bool]) -> npt.NDArray[np.int64]:
        """Features that have one of the known texts that are held."""
        if not any(held):
            return np.zeros(0, np.int64)
        held_U = np.array([*held, False])  # the last is that of -1: no text
        return np.flatnonzero(held_U[self._number_FK].any(axis=1))


@lru_cache(1 << 16)  # tokens come again and again
def needle(text: str) -> str:
    """As texts are compared. A line end inside one is a space."""
    return " ".join(text.casefold().split("\n")).strip()
