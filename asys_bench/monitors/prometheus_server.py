"""The exporter's HTTP side: /metrics and /healthz, GET and HEAD only, one thread per request."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REQUEST_TIMEOUT_S = 5.0
"""A client that does not finish its request in this time is cut off."""
TEXT = "text/plain; charset=utf-8"
INDEX = b"A-Sys-I exporter: /metrics (Prometheus), /healthz (JSON)\n"


@dataclass(frozen=True, slots=True)
class Reply:
    """What a request is answered with."""

    body: bytes
    content_type: str = TEXT
    status: int = 200


class MetricsServer:
    """Serves until `close`. `metrics` gets the request's Accept header; both run in any thread.

    address, port: where to listen; port 0 takes a free one.

    Raises:
        OSError: the address cannot be bound.
    """

    def __init__(
        self,
        address: str,
        port: int,
        metrics: Callable[[str], Reply],
        health: Callable[[], tuple[bool, Mapping[str, Any]]],
    ) -> None:
        handler = _handler(metrics, health)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        server_type = type(
            "Server", (ThreadingHTTPServer,), {"address_family": family, "daemon_threads": True}
        )
        self._server: ThreadingHTTPServer = server_type((address, port), handler)
        self.address, self.port = address, int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="asys-exporter", daemon=True
        )
        self._thread.start()

    @property
    def target(self) -> str:
        """host:port as a scrape configuration names it."""
        shown = f"[{self.address}]" if ":" in self.address else self.address
        return f"{shown}:{self.port}"

    def close(self) -> None:
        """Stop listening and wait for the listening thread; requests under way may still finish."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(
    metrics: Callable[[str], Reply], health: Callable[[], tuple[bool, Mapping[str, Any]]]
) -> type[BaseHTTPRequestHandler]:
    def answer(path: str, accept: str) -> Reply:
        if path == "/metrics":
            return metrics(accept)
        if path == "/healthz":
            well, report = health()
            body = json.dumps(report, indent=1).encode() + b"\n"
            return Reply(body, "application/json", 200 if well else 503)
        if path == "/":
            return Reply(INDEX)
        return Reply(b"not here: /metrics or /healthz\n", status=404)

    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_TIMEOUT_S
        server_version, sys_version = "asys-exporter", ""
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._reply(with_body=True)

        def do_HEAD(self) -> None:
            self._reply(with_body=False)

        def _reply(self, with_body: bool) -> None:
            try:
                reply = answer(self.path.partition("?")[0], self.headers.get("Accept", ""))
            except Exception as error:  # noqa: BLE001 - a scrape must not end the exporter
                reply = Reply(f"{type(error).__name__}: {error}\n".encode(), status=503)
            try:
                self.send_response(reply.status)
                self.send_header("Content-Type", reply.content_type)
                self.send_header("Content-Length", str(len(reply.body)))
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                if with_body:
                    self.wfile.write(reply.body)
            except OSError:  # the client has hung up
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: a line per scrape is no log."""

    return Handler
