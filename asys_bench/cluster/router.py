"""The receiver's socket: a ROUTER, and who may connect to it.

A socket that is not on loopback speaks CURVE, and the ZAP handler here lets in the clients of the key
folder alone: without a handler libzmq accepts any client key. libzmq bounds a message (`ZMQ_MAXMSGSIZE`)
and how many wait, but a message of endless parts it keeps in memory without bound until its last part
comes. So whoever polls looks at the memory of the process: past `memory_bytes` the socket is closed, which
gives that memory back, and opened again at its address. Honest forwarders connect again and go on where the
ledger is.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path

import zmq
from zmq.utils import z85

from asys_bench.cluster.keys import KeyPair, allowed_clients
from asys_bench.system.process_usage import own_memory_bytes

log = logging.getLogger(__name__)
ZAP = "inproc://zeromq.zap.01"
HEARTBEAT_MS, SILENT_MS = 2_000, 10_000
WAITING_MESSAGES = 32
"""Of one connection in libzmq, both ways; the credit is the bound for batches."""
MOST_AT_ONCE = 8
"""Messages between two looks at everything else, answers too: a window must not run out meanwhile."""


class RouterError(RuntimeError):
    """The address cannot be listened at; says why."""


class Router:
    """See the module's docstring.

    listen: host:port; port 0 takes a free one. keys: the receiver's; None: no CURVE, on loopback alone.
    allowed: folder of keys whose clients are let in.
    """

    def __init__(
        self,
        listen: str,
        keys: KeyPair | None,
        allowed: Path | None,
        max_message: int,
        memory_bytes: int,
    ) -> None:
        host, _, port = listen.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        if keys is None and not is_loopback(self._host):
            raise RouterError(
                f"{listen} is not on loopback: anybody could connect. Give keys: asys-run keys DIR, and "
                "--keys DIR"
            )
        self._keys, self._allowed, self._max_message = keys, allowed, max_message
        self._memory_bytes, self._before_bytes = memory_bytes, own_memory_bytes()
        self.refused_keys = 0
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 1024)
        self._poller = zmq.Poller()
        self._zap: zmq.Socket[bytes] | None = None
        try:
            if keys is not None:
                self._zap = self._context.socket(zmq.REP)
                self._zap.setsockopt(zmq.LINGER, 0)
                self._zap.bind(ZAP)
                self._poller.register(self._zap, zmq.POLLIN)
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        router = self._context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.MAXMSGSIZE, self._max_message),
            (zmq.RCVHWM, WAITING_MESSAGES),
            (zmq.SNDHWM, WAITING_MESSAGES),
            (zmq.HEARTBEAT_IVL, HEARTBEAT_MS),
            (zmq.HEARTBEAT_TIMEOUT, SILENT_MS),
            (zmq.HANDSHAKE_IVL, 5_000),
            (zmq.IPV6, int(":" in self._host)),
            (zmq.BACKLOG, 512),
        ):
            router.setsockopt(option, value)
        if self._keys is not None:
            router.curve_server = True
            router.curve_publickey = self._keys.public.encode()
            router.curve_secretkey = self._keys.secret.encode()
            router.zap_domain = b"asys"
        try:
            router.bind(f"tcp://{_bracketed(self._host)}:{self._port or '*'}")
        except zmq.ZMQError as error:
            router.close(0)
            raise RouterError(f"cannot listen at {self._host}:{self._port}: {error}") from None
        self._router = router
        self._port = int(router.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        self._poller.register(router, zmq.POLLIN)

    @property
    def address(self) -> str:
        return f"tcp://{_bracketed(self._host)}:{self._port}"

    def poll(self, seconds: float, receive: Callable[[bytes, memoryview], None]) -> int:
        """Wait for messages and hand each on; how many there were."""
        seen = 0
        for ready, _ in self._poller.poll(int(1000 * seconds)):
            if ready is self._zap:
                self._judge()
                continue
            while seen < MOST_AT_ONCE:
                try:
                    frames = self._router.recv_multipart(zmq.NOBLOCK, copy=False)
                except zmq.Again:
                    break
                seen += 1
                peer = frames[0].bytes
                # A message of several parts is none of ours; its first part is enough to refuse it.
                receive(peer, frames[1].buffer if len(frames) == 2 else memoryview(b""))
        return seen

    def send(self, peer: bytes, data: bytes) -> None:
        """To a peer that may be gone; a full pipe drops it, and what is counted comes with the next."""
        try:
            self._router.send_multipart((peer, data), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            log.debug("not sent: %s", error)

    def memory_used(self) -> float:
        """What the process has taken since it listens, over what it may; more than 1 is too much."""
        return (own_memory_bytes() - self._before_bytes) / self._memory_bytes

    def reset(self) -> None:
        """Close every connection and listen again at the same address.

        Raises:
            RouterError: somebody else has the address now.
        """
        self._poller.unregister(self._router)
        self._router.close(0)
        for _ in range(200):  # closed by a thread of libzmq's
            try:
                self._open()
                return
            except RouterError:
                time.sleep(0.02)
        self._open()

    def close(self, linger_s: float = 0.0) -> None:
        """What was sent has so long to leave. Idempotent."""
        self._context.destroy(linger=int(1000 * linger_s))

    def _judge(self) -> None:
        """Answer whoever knocks: RFC 27. The list is read anew, so that a deleted key is refused."""
        assert self._zap is not None
        while True:
            try:
                request = self._zap.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            version, sequence, _, _, _, mechanism, *credentials = (*request, *[b""] * 7)[:7]
            name = None
            if mechanism == b"CURVE" and len(credentials) == 1 and len(credentials[0]) == 32:
                key = z85.encode(credentials[0]).decode()
                try:
                    name = allowed_clients(self._allowed).get(key) if self._allowed else None
                except OSError as error:
                    log.warning("the list of allowed keys cannot be read: %s", error)
            if name is None:
                self.refused_keys += 1
                if self.refused_keys <= 8 or self.refused_keys & (self.refused_keys - 1) == 0:
                    log.warning(
                        "a client with another key was refused (%d so far)", self.refused_keys
                    )
            answer = (
                (b"200", b"OK", name.encode(), b"") if name else (b"400", b"unknown key", b"", b"")
            )
            self._zap.send_multipart((version or b"1.0", sequence, *answer))


def is_loopback(host: str) -> bool:
    """Every address of `host` is on this machine alone."""
    if host in ("", "*", "0.0.0.0", "::"):
        return False
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return False
    return all(str(one[4][0]).startswith("127.") or one[4][0] == "::1" for one in found)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
