"""Notices a fork: what was opened before it belongs to the parent, for good."""

from __future__ import annotations

import os

from asys_bench.contracts.bus import BusError

generation = 0
"""Rises in every forked child."""


def _forked() -> None:
    global generation
    generation += 1


def refuse() -> BusError:
    """The error for using something of the parent's."""
    return BusError(
        "this was opened before a fork and belongs to the parent process; attach by the bus's handle "
        "in the child"
    )


os.register_at_fork(after_in_child=_forked)
