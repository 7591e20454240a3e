"""Descriptors 0 to 2, which a daemonised host may have closed.

What is opened while they are free gets their numbers: the stats page as standard input of the
watchdog, say, which then waits for a specification that never comes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

FIRST_FREE = 3


@contextmanager
def standard_fds_taken() -> Iterator[None]:
    """Fill the free ones with /dev/null for the while: nothing of ours gets their numbers, and a child
    inherits something harmless. The host finds them as it left them."""
    held = take_standard_fds()
    try:
        yield
    finally:
        for fd in held:
            os.close(fd)


def take_standard_fds() -> list[int]:
    """Open /dev/null on those of 0, 1 and 2 that are closed; the ones that were."""
    held: list[int] = []
    while (fd := os.open(os.devnull, os.O_RDWR)) < FIRST_FREE:
        os.set_inheritable(fd, True)
        held.append(fd)
    os.close(fd)
    return held
