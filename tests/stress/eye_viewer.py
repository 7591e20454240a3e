"""Viewers: replay the requests that a browser made (`fixtures/eye_session.json`), with event streams.

    eye_viewer.py ADDRESS SAE COUNT        reads `go` and `halt` from standard input; prints a line at the end

Each begins at another place of the session. Between `halt` and `go` none holds a connection. They stand for
browsers, mostly on other machines: one process for all of them, which looks at the first line of an answer
and drops the rest in the kernel, so that little of the machine that is measured goes to it.
"""

from __future__ import annotations

import json
import re
import select
import socket
import sys
import time
from collections import Counter, deque
from pathlib import Path
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).parent))
from eye_rig import Client

SESSION = Path(__file__).parents[1] / "fixtures/eye_session.json"
PAGES = ("/", "/run", "/hook", "/feature", "/search", "/timeline")
STREAM = "/api/events"
PATIENCE_S = 60.0
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)
_DROPPED = bytearray(1 << 18)


class Server:
    """Where it is, and the headers that let one in."""

    def __init__(self, address: str) -> None:
        client = Client(address)
        host, _, port = client.host.partition(":")
        self._place = host, int(port)
        lines = [f"Host: {client.host}", *(f"{name}: {v}" for name, v in client.headers.items())]
        self._headers = "\r\n".join(lines)
        client.close()

    def connect(self) -> socket.socket:
        return socket.create_connection(self._place, timeout=PATIENCE_S)

    def request(self, path: str) -> bytes:
        return f"GET {path} HTTP/1.1\r\n{self._headers}\r\n\r\n".encode()


class Connection:
    """Kept alive, one request after another. `count` gets what came: answered, refused."""

    def __init__(self, server: Server, count: Counter[str]) -> None:
        self._server, self._count = server, count
        self._waiting: deque[str] = deque()
        self.socket: socket.socket | None = None
        self._head, self._left = b"", -1
        """Of an answer: as far as its head has come; bytes of its body to come, -1 before its head has."""

    def ask(self, path: str) -> None:
        self._waiting.append(path)
        if len(self._waiting) == 1:
            self._send()

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
        self.socket, self._head, self._left = None, b"", -1

    def take(self) -> None:
        """What has come. The server closes a connection on which nothing was asked for some seconds."""
        assert self.socket is not None
        try:
            got = self._body() if self._left >= 0 else self._start()
        except ConnectionError:
            got = 0
        if not got:
            self.close()
            if self._waiting:
                self._send()
        elif self._left == 0:
            self._head, self._left = b"", -1
            self._waiting.popleft()
            if self._waiting:
                self._send()

    def _send(self) -> None:
        if self.socket is None:
            self.socket = self._server.connect()
        self.socket.sendall(self._server.request(self._waiting[0]))

    def _start(self) -> int:
        assert self.socket is not None
        data = self.socket.recv(4096)
        self._head += data
        head, found, rest = self._head.partition(b"\r\n\r\n")
        if found:
            length = _LENGTH.search(head)
            assert length, head
            self._left = int(length[1]) - len(rest)
            self._count["asked"] += 1
            self._count["refused"] += int(head[9:12]) >= 400
        return len(data)

    def _body(self) -> int:
        """Dropped where it lies (tcp(7): MSG_TRUNC)."""
        assert self.socket is not None
        most = min(self._left, len(_DROPPED))
        got = self.socket.recv_into(_DROPPED, most, socket.MSG_TRUNC)
        self._left -= got
        return got


class Viewer:
    """first_s: where in the session it begins."""

    def __init__(self, server: Server, told: dict, sae: str, first_s: float) -> None:
        self._server, self._length_s = server, float(told["seconds"])
        self._requests = [
            (at, path.replace("{sae}", quote(sae, safe=""))) for at, path in told["requests"]
        ]
        self._passed_s, self._since_s = first_s % self._length_s, 0.0
        self._next = sum(at <= self._passed_s for at, _ in self._requests)
        self.count: Counter[str] = Counter()
        self._connection = Connection(server, self.count)
        self._stream: socket.socket | None = None

    def begin(self) -> None:
        self._since_s = time.monotonic() - self._passed_s

    def end(self) -> None:
        self._passed_s = time.monotonic() - self._since_s
        self._connection.close()
        self._connection = Connection(self._server, self.count)
        self._close_stream()

    def due_s(self) -> float:
        """When it does something next."""
        last = self._next == len(self._requests)
        return self._since_s + (self._length_s if last else self._requests[self._next][0])

    def go_on(self) -> None:
        """Do it."""
        if self._next == len(self._requests):
            self._since_s, self._next = self._since_s + self._length_s, 0
            return
        path = self._requests[self._next][1]
        self._next += 1
        if path == STREAM:
            self._close_stream()
            self._stream = self._server.connect()
            self._stream.sendall(self._server.request(path))
            return
        if path.partition("?")[0] in PAGES:
            self._close_stream()  # the page before is left
        self._connection.ask(path)

    def sockets(self) -> list[socket.socket]:
        return [one for one in (self._connection.socket, self._stream) if one is not None]

    def take(self, ready: socket.socket) -> None:
        if ready is not self._stream:
            self._connection.take()
            return
        data = ready.recv(1 << 18)
        self.count["events"] += data.count(b"data: ")
        if not data:
            self._close_stream()

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = None


def replay(viewers: list[Viewer]) -> None:
    """Until the end of standard input."""
    going = False
    while True:
        owners = {one: viewer for viewer in viewers for one in viewer.sockets()}
        due_s = min(viewer.due_s() for viewer in viewers)
        wait_s = max(0.0, due_s - time.monotonic()) if going else None
        for ready in select.select([sys.stdin, *owners], [], [], wait_s)[0]:
            if ready is not sys.stdin:
                owners[ready].take(ready)
                continue
            line = sys.stdin.readline().strip()
            if not line:
                return
            if going != (line == "go"):
                going = not going
                for viewer in viewers:
                    viewer.begin() if going else viewer.end()
            break  # other connections are closed
        for viewer in viewers if going else ():
            while viewer.due_s() <= time.monotonic():
                viewer.go_on()


def main(address: str, sae: str, count: str) -> None:
    told, server = json.loads(SESSION.read_text()), Server(address)
    apart_s = told["seconds"] / int(count)
    viewers = [Viewer(server, told, sae, n * apart_s) for n in range(int(count))]
    replay(viewers)
    total = sum((viewer.count for viewer in viewers), Counter[str]())
    found = {name: total[name] for name in ("asked", "refused", "events")}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
