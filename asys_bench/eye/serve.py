"""The process of the eyepiece: a socket on this machine, an address with a token, and the server on it.

It is a nice process with one thread for torch: the host and its trainers come first.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Callable
from pathlib import Path

import torch
import uvicorn

from asys_bench.eye.app import build_app
from asys_bench.eye.eye import Eye

ADDRESS = "127.0.0.1"
NICE = 10
LEAVE_S = 1


def serve(run_dir: Path, port: int, announce: Callable[[str], None]) -> None:
    """Serve the run in `run_dir` until SIGINT or SIGTERM.

    port: 0 takes a free one. announce: gets the address, token included, once it can be opened.

    Raises:
        OSError: the port is taken.
    """
    os.nice(NICE)
    torch.set_num_threads(1)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((ADDRESS, port))
        listening.listen(64)
        token = secrets.token_urlsafe(32)
        eye = Eye(run_dir)
        server = _Server(
            uvicorn.Config(
                build_app(eye, token),
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                limit_concurrency=256,
                timeout_graceful_shutdown=LEAVE_S,
            )
        )
        announce(f"http://{ADDRESS}:{listening.getsockname()[1]}/?token={token}")
        try:
            server.run(sockets=[listening])
        finally:
            eye.close()


class _Server(uvicorn.Server):
    """One that says nothing of the pages that are open still when it is ended."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)
