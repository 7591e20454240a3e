"""Types of the compiled module (coin_module.cpp)."""

from collections.abc import Sequence

def toss(key: int, tags: Sequence[int], call_index: int, /) -> float: ...
