"""A forwarder's connection: a DEALER socket for each try, and what its monitor tells of it.

libzmq would connect again by itself, with what it still held: messages of the old connection would come to a
receiver that knows nothing of them. So a socket lives for one connection: it is closed with linger 0 when the
connection ends, and the next try has a socket and a number of its own.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

from asys_bench.cluster.keys import KeyPair
from asys_bench.cluster.session import LinkState

log = logging.getLogger(__name__)
HEARTBEAT_MS, SILENT_MS = 2_000, 10_000
WAITING_MESSAGES = 256
_UP = zmq.EVENT_HANDSHAKE_SUCCEEDED
_REFUSED = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
_DOWN = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


class Link:
    """One connection at a time. Every method returns at once."""

    def __init__(self, keys: KeyPair | None, max_message: int) -> None:
        self._keys, self._max_message = keys, max_message
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._poller = zmq.Poller()
        self.state = LinkState.DOWN

    def connect(self, address: str, receiver_key: str) -> None:
        """Begin. Raises zmq.ZMQError: the address is none."""
        self.disconnect()
        dealer = self._context.socket(zmq.DEALER)
        self._socket = dealer
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.MAXMSGSIZE, self._max_message),
            (zmq.SNDHWM, WAITING_MESSAGES),
            (zmq.RCVHWM, WAITING_MESSAGES),
            (zmq.RECONNECT_IVL, -1),
            (zmq.HEARTBEAT_IVL, HEARTBEAT_MS),
            (zmq.HEARTBEAT_TIMEOUT, SILENT_MS),
            (zmq.HANDSHAKE_IVL, 10_000),
            (zmq.TCP_MAXRT, 15_000),
            (zmq.IPV6, int("[" in address)),
        ):
            dealer.setsockopt(option, value)
        if self._keys is not None and receiver_key:
            dealer.curve_publickey = self._keys.public.encode()
            dealer.curve_secretkey = self._keys.secret.encode()
            dealer.curve_serverkey = receiver_key.encode()
        self._monitor = dealer.get_monitor_socket(_UP | _REFUSED | _DOWN)
        self._poller.register(dealer, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        dealer.connect(address)
        self.state = LinkState.CONNECTING

    def wait(self, seconds: float) -> bool:
        """Until there is something to read; False: nothing came."""
        if self._socket is None:
            time.sleep(seconds)
            return False
        return bool(self._poller.poll(int(1000 * seconds)))

    def look(self) -> LinkState:
        """What has become of the connection since."""
        while self._monitor is not None and self._monitor.poll(0):
            event = int(parse_monitor_message(self._monitor.recv_multipart())["event"])
            if event & _UP and self.state is LinkState.CONNECTING:
                self.state = LinkState.UP
            elif event & _REFUSED:
                self.state = LinkState.KEY_REFUSED
            elif event & _DOWN and self.state is not LinkState.KEY_REFUSED:
                self.state = LinkState.DOWN
        return self.state

    def receive(self) -> memoryview | None:
        """The next message; None: there is none."""
        if self._socket is None:
            return None
        try:
            frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.ZMQError:
            return None
        return frames[0].buffer if len(frames) == 1 else memoryview(b"")

    def send(self, data: bytes) -> bool:
        """False: there is no room now."""
        if self._socket is None:
            return False
        try:
            self._socket.send(data, zmq.NOBLOCK)
        except zmq.ZMQError:
            return False
        return True

    def send_view(self, data: memoryview) -> Any:
        """Send what must not change until the tracker that this returns is done; None: no room now."""
        if self._socket is None:
            return None
        try:
            return self._socket.send(data, zmq.NOBLOCK, copy=False, track=True)
        except zmq.ZMQError:
            return None

    def disconnect(self) -> None:
        """Close the socket; what it had not sent is dropped. Idempotent."""
        if self._socket is not None:
            self._poller.unregister(self._socket)
            if self._monitor is not None:
                self._poller.unregister(self._monitor)
                self._socket.disable_monitor()
                self._monitor.close(0)
                self._monitor = None
            self._socket.close(0)
            self._socket = None
        self.state = LinkState.DOWN

    def close(self) -> None:
        self.disconnect()
        self._context.destroy(linger=0)
