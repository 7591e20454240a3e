"""What becomes of our hooks in a copy that takes them along: nothing that does anything.

Most copies leave them out (`own_hooks`); a class that copies its dictionaries by itself (FX graph
modules, parametrised modules) does not. There a copied hook is inert, and a pickled one needs nothing
of this package to be loaded.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any


class InertHook:
    """Takes any arguments and returns None, as a hook that changes nothing must."""

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        return None

    def __deepcopy__(self, memo: dict[int, Any]) -> InertHook:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # `__exit__` of a null context is a callable of the standard library that does just that.
        return (getattr, (nullcontext(), "__exit__"))


INERT = InertHook()


class LiveHook:
    """Base of our hooks: its copies are inert."""

    def __deepcopy__(self, memo: dict[int, Any]) -> InertHook:
        return INERT

    def __copy__(self) -> InertHook:
        return INERT

    def __reduce__(self) -> tuple[Any, ...]:
        return INERT.__reduce__()
