"""Round trips to an address in ms, one a line: ADDRESS TIMES WAIT_S. As root; `ping` is not everywhere.

One that gets no answer within WAIT_S has no line. Raises TimeoutError: none got one.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time

ECHO, REPLY = 8, 0


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def round_trip_s(channel: socket.socket, address: str, number: int) -> float:
    """Raises TimeoutError."""
    mine = os.getpid() & 0xFFFF
    head = struct.pack("!BBHHH", ECHO, 0, 0, mine, number)
    began = time.monotonic()
    channel.sendto(struct.pack("!BBHHH", ECHO, 0, checksum(head), mine, number), (address, 0))
    while True:
        answer = channel.recv(2048)
        inner = answer[(answer[0] & 0xF) * 4 :]
        kind, _, _, whose, which = struct.unpack("!BBHHH", inner[:8])
        if (kind, whose, which) == (REPLY, mine, number):
            return time.monotonic() - began


def main() -> None:
    address, times = sys.argv[1], int(sys.argv[2])
    lost = 0
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as channel:
        channel.settimeout(float(sys.argv[3]))
        for number in range(times):
            try:
                print(f"{1000 * round_trip_s(channel, address, number):.3f}", flush=True)
            except TimeoutError:
                lost += 1
                if lost == times:
                    raise


if __name__ == "__main__":
    main()
