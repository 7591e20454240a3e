"""One viewer: replays the requests that a browser made (`fixtures/eye_session.json`), with event streams.

    eye_viewer.py ADDRESS SAE FIRST_S      reads `go` and `halt` from standard input; prints a line at the end

Between `halt` and `go` it holds no connection. FIRST_S: where in the session it begins, so that several are
not at one place. Standard library alone: it takes little of the machine that is measured.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from http.client import HTTPException
from pathlib import Path
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).parent))
from eye_rig import Client

SESSION = Path(__file__).parents[1] / "fixtures/eye_session.json"
PAGES = ("/", "/run", "/hook", "/feature", "/search", "/timeline")


class Viewer:
    def __init__(self, address: str, sae: str, first_s: float) -> None:
        told = json.loads(SESSION.read_text())
        self._length_s = told["seconds"]
        self._requests = [
            (at, path.replace("{sae}", quote(sae, safe=""))) for at, path in told["requests"]
        ]
        self._address, self._at_s = address, first_s % self._length_s
        self._client: Client | None = None
        self._stream: socket.socket | None = None
        self.asked = self.refused = self.events = 0

    def run(self) -> None:
        going, since = False, time.monotonic()
        while True:
            wait_s = self._next_s(since) if going else None
            reads = [sys.stdin, *([self._stream] if self._stream is not None else [])]
            ready = select.select(reads, [], [], wait_s)[0]
            if sys.stdin in ready:
                line = sys.stdin.readline().strip()
                if line == "halt" or not line:
                    self._leave()
                    going = False
                    if not line:
                        return
                elif line == "go":
                    self._client = Client(self._address)
                    going, since = True, time.monotonic() - self._at_s
                continue
            if self._stream in ready:
                self._take()
            if going and self._next_s(since) <= 0:
                since = self._send(since)

    def _next_s(self, since: float) -> float:
        """Until the next request."""
        passed = time.monotonic() - since
        following = [at for at, _ in self._requests if at > self._at_s]
        return max(0.0, (following[0] if following else self._length_s) - passed)

    def _send(self, since: float) -> float:
        passed = time.monotonic() - since
        due = [path for at, path in self._requests if self._at_s < at <= passed]
        self._at_s = passed
        for path in due:
            self._ask(path)
        if passed >= self._length_s:
            self._at_s = 0.0
            return time.monotonic()
        return since

    def _ask(self, path: str) -> None:
        assert self._client is not None
        if path == "/api/events":
            return  # a page opens it, below
        status, _ = self._client.get(path)
        self.asked += 1
        self.refused += status >= 400
        if path.partition("?")[0] in PAGES:
            if self._stream is not None:
                self._stream.close()
            self._stream = self._open_stream()

    def _open_stream(self) -> socket.socket:
        assert self._client is not None
        host, _, port = self._client.host.partition(":")
        stream = socket.create_connection((host, int(port)), timeout=60)
        lines = [f"GET /api/events HTTP/1.1\r\nHost: {self._client.host}"]
        lines += [f"{name}: {value}" for name, value in self._client.headers.items()]
        stream.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        return stream

    def _take(self) -> None:
        assert self._stream is not None
        data = self._stream.recv(1 << 18)
        self.events += data.count(b"data: ")
        if not data:
            self._stream.close()
            self._stream = None

    def _leave(self) -> None:
        for one in (self._stream, self._client):
            if one is not None:
                one.close()
        self._stream = self._client = None


def main(address: str, sae: str, first_s: str) -> None:
    viewer = Viewer(address, sae, float(first_s))
    try:
        viewer.run()
    except (OSError, HTTPException) as error:
        print(json.dumps({"error": str(error)}), flush=True)
        raise
    print(
        json.dumps({"asked": viewer.asked, "refused": viewer.refused, "events": viewer.events}),
        flush=True,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
