"""A storm: one producer, two groups of two readers, and SIGKILLs of random readers all along.

    python storm.py BACKEND PACKETS KILLS SEED [WORDS]     prints the outcome as JSON

WORDS: of the longest packet, 200 unless told. With 8,000 the rings choose their stores and wait for the
window of their arena (`cpp_spmc/stores.hpp`), which payloads under 16 KiB do not.

Every packet's words all hold its sequence number, and its length follows from it, so a torn or
mixed-up frame cannot pass. A reader of the at_least_once group logs what it read before it
acknowledges, one of the at_most_once group after; each log line is one write.
"""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import sys
import tempfile
import time
from collections import Counter

import numpy as np

from asys_bench.contracts.bus import BusPlugin, BusRequest, Delivery, GroupSpec
from asys_bench.contracts.packet import PacketMeta
from asys_bench.registry import registry

BATCH = 16
LENGTHS = 200
TORN = -1
READERS = 2
GROUPS = (GroupSpec("train"), GroupSpec("archive", Delivery.AT_LEAST_ONCE))


def length(seq: int, longest: int) -> int:
    """Words of a packet, 1 to `longest`."""
    return seq % LENGTHS * (longest // LENGTHS) + 1


def read(plugin: BusPlugin, handle, group: GroupSpec, name: str, log: str, longest: int) -> None:
    """A reader process: until the stream ends or somebody kills it."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    own = type(handle)(handle.backend, handle.params, tuple(os.dup(fd) for fd in handle.fds))
    subscription = plugin.attach(own).subscribe(group.name, name)
    chance = random.Random(os.getpid())
    while not subscription.ended:
        lease = subscription.pull_batch(chance.randint(1, BATCH), 0.05)
        seqs = []
        for packet in lease:
            words = np.frombuffer(packet.payload, np.uint64)
            expected = length(packet.seq, longest)
            good = len(words) == expected and bool((words == packet.seq).all())
            seqs.append(packet.seq if good else TORN)
            words = None
        packet = None
        line = struct.pack(f"<{len(seqs)}q", *seqs)
        if group.delivery is Delivery.AT_LEAST_ONCE:
            os.write(file, line)
            lease.release()
        elif lease.release() == len(seqs):
            os.write(file, line)


def storm(
    backend: str, packets: int, kills: int, seed: int, longest: int = LENGTHS
) -> dict[str, object]:
    """Run it and count."""
    plugin = registry("backend").get(backend, BusPlugin)
    chance = random.Random(seed)
    before = set(os.listdir("/dev/shm"))
    bus = plugin.build(
        BusRequest(
            groups=GROUPS,
            capacity_packets=1024,
            capacity_bytes=max(4 << 20, 2048 * longest),
            options=plugin.options(),
        )
    )
    handle = bus.handle()
    folder = tempfile.mkdtemp()
    alive: dict[int, tuple[GroupSpec, int]] = {}

    def spawn(group: GroupSpec, index: int) -> None:
        pid = os.fork()
        if pid:
            alive[pid] = (group, index)
            return
        try:
            read(
                plugin, handle, group, f"reader-{index}", os.path.join(folder, group.name), longest
            )
            os._exit(0)
        except BaseException as error:  # noqa: BLE001 - a forked child must not return into the parent's stack
            print(f"reader failed: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)

    for group in GROUPS:
        for index in range(READERS):
            spawn(group, index)
    producer = bus.producer(0)
    buffers = [np.zeros(length(index, longest), np.uint64) for index in range(LENGTHS)]
    meta = PacketMeta(0, 0, 8, (1,))
    sent = killed = 0
    failed: list[int] = []
    started = time.monotonic()
    try:
        while sent < packets or killed < kills:
            for _ in range(64):
                if sent >= packets:
                    break
                buffer = buffers[sent % LENGTHS]
                buffer[:] = sent
                if not producer.push(meta, buffer, 0.01):
                    break
                sent += 1
            if killed < kills and sent >= packets * killed / kills:
                pid = chance.choice(list(alive))
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                if chance.random() < 0.5:  # sometimes a watchdog reaps, sometimes the others notice
                    bus.reap(pid)
                killed += 1
                spawn(*alive.pop(pid))
            for pid in list(alive):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    failed.append(pid)
                    spawn(*alive.pop(pid))
        bus.finish()
        for pid in list(alive):
            if os.waitpid(pid, 0)[1]:
                failed.append(pid)
            del alive[pid]
    finally:
        for pid in alive:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    seconds = time.monotonic() - started
    account = bus.account()
    outcome: dict[str, object] = {
        "backend": backend, "sent": sent, "kills": killed, "seconds": round(seconds, 1),
        "readers_failed": len(failed), "imbalance": [account.imbalance(g) for g in account.groups],
    }  # fmt: skip
    for group in GROUPS:
        path = os.path.join(folder, group.name)
        counts = Counter(np.fromfile(path, np.int64).tolist())
        os.unlink(path)
        torn = counts.pop(TORN, 0)
        mine = account.group(group.name)
        outcome[group.name] = {
            "torn": torn,
            "missing": sent - len(counts),
            "duplicates": sum(counts.values()) - len(counts),
            "delivered": mine.delivered,
            "lost_in_flight": mine.lost_in_flight,
            "dead_lettered": mine.dead_lettered,
            "ready": mine.ready,
        }
    os.rmdir(folder)
    bus.close()
    outcome["left_behind"] = sorted(set(os.listdir("/dev/shm")) - before)
    return outcome


if __name__ == "__main__":
    print(json.dumps(storm(sys.argv[1], *map(int, sys.argv[2:]))))
