"""Search in what all features fire on: one text of all of them, so that a look takes milliseconds."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate

_END = "\x00"


class Haystack:
    """texts: of each feature what can be found, such as its tokens. Case does not count, nor do spaces at
    the ends of one."""

    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        told = [self._line(one) for one in texts]
        self._starts = [0, *accumulate(len(one) for one in told)]
        self._all = "".join(told)

    @staticmethod
    def _line(texts: Sequence[str]) -> str:
        parts = [part for text in texts if (part := needle(text))]
        return "\n" + "".join(f"{part}\n" for part in parts) + _END if parts else _END

    def features(self, text: str) -> Iterator[int]:
        """Those of which a text holds `text`, ascending."""
        return self._find(needle(text))

    def exactly(self, text: str) -> Iterator[int]:
        """Those that have `text` itself among their texts."""
        wanted = needle(text)
        return self._find(f"\n{wanted}\n" if wanted else "")

    def _find(self, wanted: str) -> Iterator[int]:
        if not wanted or _END in wanted:
            return
        at = self._all.find(wanted)
        while at >= 0:
            feature = bisect_right(self._starts, at) - 1
            yield feature
            at = self._all.find(wanted, self._starts[feature + 1])


@lru_cache(1 << 16)  # tokens come again and again
def needle(text: str) -> str:
    """As texts are compared. A line end inside one is a space."""
    return " ".join(text.casefold().replace(_END, " ").split("\n")).strip()
