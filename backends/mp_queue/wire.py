"""The channel: one Unix stream socket per consumer incarnation, and the frames on it.

Both directions carry 16-byte heads ``u8 type, 3 pad, u32 count, u64 value`` (little-endian)::

    consumer -> owner                          owner -> consumer
      HELLO      count = JSON bytes              WELCOME  count = JSON bytes
      PULL       count = max, value = min        BATCH    count = packets, value = batch id
      PULL_NOW   count = max (answer at once)    END      nothing will ever come for this group
      CANCEL     answer with what there is
      ACK        value = batch id
      GIVE_BACK  value = batch id (seen, failed)
      RETURN     value = batch id (never seen by the application)
      BYE        value = last batch id seen

Every PULL is answered by exactly one BATCH (possibly of 0 packets, after CANCEL) or by END.
After a BATCH head come ``count`` u64 frame sizes, then the frames (packet header + payload), each
padded to a multiple of 64 bytes. HELLO's JSON holds the token that the handle carries.

A producer in another process names its ``shard`` in HELLO. WELCOME brings the descriptor of that
shard's arena; it writes frames there and says where they lie::

    producer -> owner                          owner -> producer
      PUBLISH    count = hook id,                FREED    value = frames, oldest first
                 value = offset/64 << 32 | payload bytes
      REFUSED    count = reason, value = packets END      the bus takes no more
      BYE        answered by end of file
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import secrets
import shutil
import socket
import struct
import sys
import tempfile
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from asys_bench.contracts.bus import BusError, Delivery, GroupSpec

HEAD = struct.Struct("<B3xIQ")
ALIGN = 64
MAX_HELLO_BYTES = 1 << 20
SOCKET_BUFFER_BYTES = 4 << 20
BACKLOG = 128
"""Connections that the kernel keeps until they are accepted."""
NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)
"""Send flag: a dead peer is an error code, never a SIGPIPE (hosts may have reset its handler)."""
_CREDENTIALS = struct.Struct("3i")
_TIMEVAL = struct.Struct("@ll")


class Frame(IntEnum):
    """The type byte of a head."""

    HELLO = 1
    PULL = 2
    PULL_NOW = 3
    CANCEL = 4
    ACK = 5
    GIVE_BACK = 6
    RETURN = 7
    BYE = 8
    RETIRE = 9
    PUBLISH = 10
    REFUSED = 11
    WELCOME = 16
    BATCH = 17
    END = 18
    FREED = 19


@dataclass(frozen=True, slots=True)
class Hello:
    """Who joins which group, or takes the producer of which shard."""

    group: str
    member: str
    spec: GroupSpec | None
    shard: int | None = None


def padded(nbytes: int) -> int:
    """`nbytes` rounded up to the frame alignment."""
    return (nbytes + ALIGN - 1) & -ALIGN


def listen() -> tuple[socket.socket, str, str | None]:
    """A listening socket, its address for handles, and the directory to remove at close (or None).

    On Linux the name is abstract ("@..."): nothing is on disk, so nothing survives a SIGKILL.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    name = f"asys-{os.getpid()}-{secrets.token_hex(12)}"
    folder: str | None = None
    try:
        if sys.platform == "linux":
            listener.bind("\0" + name)
            address = "@" + name
        else:
            folder = tempfile.mkdtemp(prefix="asys-")  # mode 0700
            address = os.path.join(folder, "bus")
            listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return listener, address, folder


def connect(address: str, timeout_s: float) -> socket.socket:
    """A connected channel to the owner at `address`, with `timeout_s` set on it.

    Raises:
        BusError: nobody listens there, or a process of another user does.
    """
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # With a timeout of Python's connect(2) would not wait for a place in a full backlog.
        seconds, part = divmod(timeout_s, 1.0)
        limit = _TIMEVAL.pack(int(seconds), int(part * 1e6) or int(not seconds))
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        channel.connect("\0" + address[1:] if address.startswith("@") else address)
        channel.settimeout(timeout_s)
        if peer_of(channel)[1] != os.geteuid():
            raise BusError(f"the bus at {address} belongs to another user; check the handle")
        size_buffers(channel)
    except OSError as error:
        channel.close()
        raise BusError(
            f"no bus owner answers at {address} ({error}); it ended, or the handle is from another "
            "machine or network namespace"
        ) from error
    except BusError:
        channel.close()
        raise
    return channel


def peer_of(channel: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the other end as the kernel knows it; (0, own uid) where it cannot say."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return 0, os.geteuid()  # the 0700 directory and the token stand guard
    pid, uid, _ = _CREDENTIALS.unpack(
        channel.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size)
    )
    return pid, uid


def size_buffers(channel: socket.socket) -> None:
    """Ask for kernel buffers of `SOCKET_BUFFER_BYTES`; the kernel caps them at wmem_max and rmem_max."""
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        with contextlib.suppress(OSError):
            channel.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)


def encode_hello(token: str, hello: Hello) -> bytes:
    """The HELLO frame, head included."""
    spec = hello.spec
    body = json.dumps(
        {
            "token": token,
            "group": hello.group,
            "member": hello.member,
            "shard": hello.shard,
            "spec": None
            if spec is None
            else {
                "name": spec.name,
                "delivery": spec.delivery.value,
                "hooks": None if spec.hooks is None else list(spec.hooks),
            },
        }
    ).encode()
    return HEAD.pack(Frame.HELLO, len(body), 0) + body


def decode_hello(body: bytes, token: str) -> Hello:
    """The HELLO body, treated as untrusted.

    Raises:
        BusError: it is not a HELLO, or the token is wrong.
    """
    try:
        fields: dict[str, Any] = json.loads(body)
        if not hmac.compare_digest(str(fields["token"]).encode(), token.encode()):
            raise BusError("wrong token: the handle belongs to another bus")
        raw = fields["spec"]
        spec = None
        if raw is not None:
            hooks = None if raw["hooks"] is None else tuple(str(hook) for hook in raw["hooks"])
            spec = GroupSpec(str(raw["name"]), Delivery(raw["delivery"]), hooks)
        shard = None if fields["shard"] is None else int(fields["shard"])
        return Hello(str(fields["group"]), str(fields["member"]), spec, shard)
    except (KeyError, TypeError, ValueError) as error:
        raise BusError(f"malformed HELLO: {error!r}") from error


def encode_welcome(error: str | None, **facts: int) -> bytes:
    """The WELCOME frame; `error` is why it may not join, `facts` what a producer must know."""
    body = json.dumps({"error": error, **facts}).encode()
    return HEAD.pack(Frame.WELCOME, len(body), 0) + body


def encode_publish(hook_id: int, offset: int, nbytes: int) -> bytes:
    """The PUBLISH frame of a packet that lies at `offset` of its shard's arena."""
    return HEAD.pack(Frame.PUBLISH, hook_id, offset // ALIGN << 32 | nbytes)


def decode_publish(value: int) -> tuple[int, int]:
    """(offset, payload bytes) of a PUBLISH."""
    return (value >> 32) * ALIGN, value & 0xFFFFFFFF


def receive_exactly(sock: socket.socket, nbytes: int) -> bytes:
    """`nbytes` from a blocking socket. Raises OSError: it hung up, or its timeout passed."""
    data = bytearray()
    while len(data) < nbytes:
        piece = sock.recv(nbytes - len(data))
        if not piece:
            raise ConnectionResetError("it hung up")
        data += piece
    return bytes(data)
