"""Carry IP packets between network namespaces, each late by a given time: a netem for kernels without one.

    python tun_relay.py RTT_MS NAMESPACE=ADDRESS...       as root

Each namespace gets a TUN device `tun0` with its address; a packet goes to the device of its destination,
half of RTT_MS after it was read. Prints "ready", then takes a new RTT_MS a line on standard input, and leaves
at its end. A device that is down takes nothing: its packets are lost, as in a cut cable.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections import deque

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
CLONE_NEWNET = 0x40000000
NAMESPACES = "/run/netns"
LONGEST = 1 << 16
QUEUE_BYTES = 64 << 20
"""What is under way at once; beyond that packets are lost, as in a switch."""


def enter(namespace: str) -> None:
    """This thread is in `namespace` from now on."""
    fd = os.open(f"{NAMESPACES}/{namespace}", os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"setns({namespace})")
    os.close(fd)


def open_tun(namespace: str, address: str) -> int:
    """A TUN device in `namespace`, up, with `address`/24; its descriptor."""
    enter(namespace)
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"tun0", IFF_TUN | IFF_NO_PI))
    for command in (
        ("link", "set", "lo", "up"),
        ("addr", "add", f"{address}/24", "dev", "tun0"),
        ("link", "set", "tun0", "up"),
    ):
        subprocess.run(["ip", *command], check=True)
    return fd


def relay(tuns: dict[bytes, int], rtt_ms: float) -> None:
    """Until standard input ends."""
    delay_s = rtt_ms / 2000
    under_way: deque[tuple[float, int, bytes]] = deque()
    nbytes = 0
    fds = [*tuns.values(), 0]
    while True:
        left = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        for fd in select.select(fds, (), (), left)[0]:
            if fd == 0:
                line = os.read(0, 256)
                if not line:
                    return
                delay_s = float(line.split()[-1]) / 2000
                continue
            try:
                packet = os.read(fd, LONGEST)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EIO):
                    continue
                raise
            to = tuns.get(packet[16:20]) if packet[:1] >= b"\x40" else None
            if to is not None and nbytes + len(packet) <= QUEUE_BYTES:
                under_way.append((time.monotonic() + delay_s, to, packet))
                nbytes += len(packet)
        now = time.monotonic()
        while under_way and under_way[0][0] <= now:
            _, to, packet = under_way.popleft()
            nbytes -= len(packet)
            try:
                os.write(to, packet)
            except OSError as error:  # down, or its queue is full
                if error.errno not in (errno.EIO, errno.EAGAIN, errno.ENOBUFS, errno.ENETDOWN):
                    raise


def main() -> None:
    rtt_ms, places = float(sys.argv[1]), [one.split("=") for one in sys.argv[2:]]
    tuns = {socket.inet_aton(address): open_tun(name, address) for name, address in places}
    print("ready", flush=True)
    relay(tuns, rtt_ms)


if __name__ == "__main__":
    main()
