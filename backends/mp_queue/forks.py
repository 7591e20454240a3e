"""What happens to a bus or client in a forked child: its sockets are closed there.

Death is seen as end of file, and a forked child (a data loader's worker, say) that keeps a copy of
the socket would hide it.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forkable(Protocol):
    """Holds descriptors that a forked child must not keep."""

    def after_fork_in_child(self) -> None: ...


_watched: weakref.WeakSet[Forkable] = weakref.WeakSet()
_registered = False


def watch(thing: Forkable) -> None:
    """Call `thing.after_fork_in_child()` in every child forked while it lives."""
    global _registered
    if not _registered:
        os.register_at_fork(after_in_child=_close_in_child)
        _registered = True
    _watched.add(thing)


def _close_in_child() -> None:
    for thing in list(_watched):
        thing.after_fork_in_child()
    _watched.clear()
