"""What becomes of our hooks in a copy of the model: nothing that does anything.

`copy.deepcopy(model)`, `torch.save(model)` and a pickled model carry the dictionaries of hooks with
them. A copy is another model (an average of weights, a target network, a checkpoint): captured under
the same name it would mix with the original, and detaching would not reach it. So a copied hook is
inert, and a pickled one needs nothing of this package to be loaded.
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
