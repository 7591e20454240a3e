"""A port for a program that must be told one."""

from __future__ import annotations

import random
import socket


def free_port() -> int:
    """One that is free now, of those that the kernel gives to nobody who asks for any (it has 32768 on):
    between here and the program's own start only another call of this could take it."""
    for port in random.SystemRandom().sample(range(20_000, 32_000), 1000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no port of 1000 is free")
