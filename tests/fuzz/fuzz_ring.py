"""Segments whose words are damaged, attached to and used: an answer, a BusError or a PacketError, no
signal, no hang.

`python fuzz_ring.py BACKEND SECONDS SEED [CASES]` prints what happened as JSON. Each case is a copy of a
good segment (packets in it, a consumer that died with a claim) with a few 8-byte words replaced, mostly
in the header and the control blocks. SIGALRM ends a case that takes longer than `CASE_S`.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import struct
import sys
import time
from collections import Counter
from typing import Any

import torch
from mutate import WIDE

from asys_bench.contracts.bus import BusError, BusHandle, BusPlugin, BusRequest, Delivery, GroupSpec
from asys_bench.contracts.packet import DTYPE_CODE, Kind, PacketError, PacketMeta
from asys_bench.registry import registry

CASE_S = 10
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
META = PacketMeta(hook_id=1, kind=Kind.ACTIVATION, dtype=DTYPE_CODE[torch.uint8], shape=(128,))


def good_segment(plugin: BusPlugin) -> tuple[bytes, dict[str, Any]]:
    """A segment's bytes, with packets that were read, are held and wait; and its handle."""
    groups = (GroupSpec("train", Delivery.AT_MOST_ONCE), GroupSpec("keep", Delivery.AT_LEAST_ONCE))
    request = BusRequest(
        groups=groups, shards=2, capacity_packets=16, capacity_bytes=1 << 16, checksum=True,
        names=("layer.0",), options=plugin.options(),
    )  # fmt: skip
    with plugin.build(request) as bus:
        producer = bus.producer(0)
        for number in range(10):
            assert producer.try_push(META, torch.full((128,), number, dtype=torch.uint8))
        with bus.pull_batch("train", 4):
            pass
        held = bus.subscribe("keep", "late").pull_batch(2, 0.0)
        handle = bus.handle()
        data = os.pread(handle.fds[0], os.fstat(handle.fds[0]).st_size, 0)
        held.release()
        return data, handle.to_dict()


def attach_and_use(plugin: BusPlugin, fd: int, handle: dict[str, Any]) -> None:
    """What a worker, a monitor and another rank do with a segment."""
    client = plugin.attach(BusHandle.from_dict(handle, [fd]))
    try:
        client.account()
        for name_id in (0, 1, 2, 7, 1 << 20):
            try:
                client.name_of(name_id)
            except BusError:
                continue
        for group in ("train", "keep"):
            with client.subscribe(group, "fuzz") as subscription:
                for _ in range(3):
                    with subscription.pull_batch(8, 0.0) as lease:
                        for packet in lease:
                            read(packet)
        client.reap(os.getpid() + 1)
        producer = client.attach_producer(1, 3)
        for _ in range(3):
            producer.try_push(META, torch.zeros(128, dtype=torch.uint8))
        producer.fill_ratio()
        producer.close()
        client.account()
    finally:
        client.close()


def read(packet: Any) -> None:
    try:
        packet.verify()
        tensor = packet.raw_tensor()
        float(tensor.float().sum())
        del tensor
    except PacketError:
        pass


def damaged(good: bytes, draw: random.Random) -> bytes:
    data = bytearray(good)
    for _ in range(draw.randint(1, 8)):
        kind = draw.randrange(10)
        span = 4096 if kind < 3 else 32768 if kind < 8 else len(data)
        at = draw.randrange(min(span, len(data)) // 8) * 8
        if draw.random() < 0.2:
            data[at] ^= 1 << draw.randrange(8)
        else:
            value = draw.choice(WIDE) if draw.random() < 0.6 else draw.getrandbits(64)
            struct.pack_into("<Q", data, at, value)
    if draw.random() < 0.03:
        data = data[: draw.randrange(len(data) + 1)]
    return bytes(data)


def hung(number: int, frame: Any) -> None:
    print("HANG", file=sys.stderr, flush=True)
    import faulthandler

    faulthandler.dump_traceback(all_threads=True)
    os._exit(99)


def main(backend: str, seconds: float, seed: str, most: int) -> dict[str, Any]:
    plugin = registry("backend").get(backend, BusPlugin)
    good, handle = good_segment(plugin)
    outcomes: Counter[str] = Counter()
    signal.signal(signal.SIGALRM, hung)
    until = time.monotonic() + seconds
    case, slowest = 0, (0.0, 0)
    while case < most and time.monotonic() < until:
        draw = random.Random(f"{seed}-{case}")
        print(case, file=sys.stderr, flush=True)
        fd = os.memfd_create("fuzz", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.write(fd, damaged(good, draw))
        if draw.random() < 0.98:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        signal.alarm(CASE_S)
        begin = time.monotonic()
        try:
            attach_and_use(plugin, fd, handle)
            outcomes["answered"] += 1
        except (BusError, PacketError) as error:
            outcomes[type(error).__name__] += bool(str(error))
        signal.alarm(0)
        if time.monotonic() - begin > slowest[0]:
            slowest = time.monotonic() - begin, case
        os.close(fd)
        case += 1
    return {"cases": case, "slowest_s": round(slowest[0], 3), "slowest": slowest[1], **outcomes}


if __name__ == "__main__":
    import faulthandler

    faulthandler.enable()
    arguments = sys.argv[1:]
    limit = int(arguments[3]) if len(arguments) > 3 else 1 << 60
    print(json.dumps(main(arguments[0], float(arguments[1]), arguments[2], limit)))
