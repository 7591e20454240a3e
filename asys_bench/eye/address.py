"""Where the eyepiece is reached (a socket on this machine, and the token that lets one in), if it can be had.

Nothing heavy is imported here. The address can be told, and opened, while the server is still being imported:
the browser waits for its answer.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

ADDRESS = "127.0.0.1"
NEEDS = ("starlette", "uvicorn")
WAITING = 64
"""Connections that are not taken up yet."""


@dataclass(frozen=True)
class Address:
    """listening: bound, and listened at."""

    listening: socket.socket
    token: str

    @property
    def url(self) -> str:
        """Token included."""
        return f"http://{ADDRESS}:{self.listening.getsockname()[1]}/?token={self.token}"


@contextmanager
def listen(port: int) -> Iterator[Address]:
    """An address for the while.

    port: 0 takes a free one.

    Raises:
        OSError: the port is taken.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((ADDRESS, port))
        listening.listen(WAITING)
        yield Address(listening, secrets.token_urlsafe(32))


class NoEyepieceError(RuntimeError):
    """There can be no eyepiece here; says why and the fix."""


def check_installed() -> None:
    """Raises NoEyepieceError: what the server is made of is missing."""
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        raise NoEyepieceError(f"{' and '.join(missing)} not installed: pip install 'asys-i[eye]'")
