"""Types of the compiled module (steps_module.cpp)."""

from collections.abc import Callable

def clock_methods(
    clock: type, moment: type, heartbeat_cell: int, ahead_cell: int, /
) -> tuple[Callable[..., None], Callable[..., None]]: ...
def labels_method(labels: type, /) -> Callable[..., None]: ...
