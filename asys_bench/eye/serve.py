"""The process of the eyepiece: nice, with one thread for torch, as the host and its trainers come first."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from asys_bench.eye.address import Address
from asys_bench.eye.app import pages_app
from asys_bench.eye.eye import Eye
from asys_bench.eye.guard import Guard
from asys_bench.eye.typed.process import ModelProcess
from asys_bench.system.process import yield_to_others

NICE = 10
LEAVE_S = 1
ASK_S, TICK_S = 1.0, 0.5


class Viewers:
    """An ASGI application in front of `inner` that knows whether somebody who was let in looks."""

    def __init__(self, inner: ASGIApp) -> None:
        self._inner = inner
        self.open = 0
        """Answers that are under way; each open page has one, its stream of figures."""
        self.left_at = -math.inf
        """When the last answer ended, on the monotonic clock."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.open += 1
        try:
            await self._inner(scope, receive, send)
        finally:
            self.open -= 1
            self.left_at = time.monotonic()


def serve(
    run_dir: Path,
    address: Address,
    is_over: Callable[[Viewers], bool] | None = None,
    model: tuple[str, str | None] | None = None,
) -> None:
    """Serve the run in `run_dir` until SIGINT or SIGTERM.

    is_over: asked every `ASK_S` in a thread; True ends it too. model: (model, GGUF file) that typed
    texts go through, loaded by a process of its own.
    """
    yield_to_others(min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICE))
    torch.set_num_threads(1)
    eye = Eye(run_dir)
    reader = ModelProcess(run_dir, *model) if model is not None else None
    viewers = Viewers(pages_app(eye, reader))
    server = _Server(
        uvicorn.Config(
            Guard(viewers, address.token),
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
    if is_over is not None:
        told = (server, lambda: is_over(viewers))
        threading.Thread(target=_end_when, args=told, name="eye-end", daemon=True).start()
    try:
        server.run(sockets=[address.listening])
    finally:
        if reader is not None:
            reader.close()
        eye.close()


def _end_when(server: uvicorn.Server, is_over: Callable[[], bool]) -> None:
    while not is_over():
        time.sleep(ASK_S)
    server.should_exit = True


class _Server(uvicorn.Server):
    """One that says nothing of the pages that are open still when it is ended, and that looks twice a second
    whether it is, where uvicorn's own wakes ten times."""

    async def main_loop(self) -> None:
        while not self.should_exit:
            await asyncio.sleep(TICK_S)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)
