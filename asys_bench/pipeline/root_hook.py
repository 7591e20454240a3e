"""A hook on the user's own model that a copy or a pickle of the model leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _left_behind(*_: Any) -> None:
    """What a hook becomes in a copy of the model."""


def _make_left_behind() -> Callable[..., None]:
    return _left_behind


class RootHook:
    """Calls `action` with the hook's arguments.

    `copy.deepcopy(model)` and `torch.save(model)` copy hooks too; this one turns into a function that
    does nothing, so that both work while the model is observed.
    """

    def __init__(self, action: Callable[..., None]) -> None:
        self._action = action

    def __call__(self, *args: Any) -> None:
        self._action(*args)

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        return _make_left_behind, ()
