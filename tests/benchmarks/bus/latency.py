"""One-way latency of a ring at 4 KiB and 1000 packets/s, and what waiting costs the consumer.

    python tests/benchmarks/bus/latency.py [BACKEND]

Prints a row each for a consumer that spins, one that sleeps, and one that waits for nothing.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

import numpy as np

from asys_bench.contracts.bus import BusHandle, BusPlugin, BusRequest, GroupSpec
from asys_bench.contracts.packet import PacketMeta
from asys_bench.registry import registry

RATE_PER_S = 1000
PACKETS = 5000
IDLE_S = 5.0


def consume(handle: str, fds: list[int]) -> None:
    """Latency of every packet from its timestamp, and the share of a core used."""
    data = json.loads(handle)
    plugin = registry("backend").get(data["backend"], BusPlugin)
    subscription = plugin.attach(BusHandle.from_dict(data, fds)).subscribe("g", "reader")
    print("ready", flush=True)
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    latencies_us = []
    while not subscription.ended:
        with subscription.pull_batch(64, 0.05) as lease:
            now = time.monotonic_ns()
            latencies_us.extend((now - packet.timestamp_ns) / 1e3 for packet in lease)
    after, seconds = resource.getrusage(resource.RUSAGE_SELF), time.monotonic() - started
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    p50, p99 = np.percentile(latencies_us, [50, 99]) if latencies_us else (float("nan"),) * 2
    print(f"{len(latencies_us)} | {p50:.1f} | {p99:.1f} | {100 * cpu / seconds:.2f} %")


def measure(backend: str, spin_us: int, packets: int) -> str:
    """One consumer process; returns its row."""
    plugin = registry("backend").get(backend, BusPlugin)
    options = plugin.options.model_validate({"spin_us": spin_us})
    with plugin.build(BusRequest(groups=(GroupSpec("g"),), options=options)) as bus:
        handle = bus.handle()
        command = [sys.executable, __file__, "--consume", json.dumps(handle.to_dict())]
        with subprocess.Popen(
            [*command, *map(str, handle.fds)],
            pass_fds=handle.fds,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            producer, payload = bus.producer(0), np.zeros(4096, np.uint8)
            due = time.monotonic()
            for _ in range(packets):
                due += 1 / RATE_PER_S
                while (left := due - time.monotonic()) > 0:
                    time.sleep(left if left > 2e-4 else 0)
                producer.try_push(PacketMeta(0, 0, 5, (4096,), 0, time.monotonic_ns()), payload)
            if not packets:
                time.sleep(IDLE_S)
            bus.finish()
            return process.stdout.read().strip()


def main() -> None:
    if sys.argv[1:2] == ["--consume"]:
        consume(sys.argv[2], list(map(int, sys.argv[3:])))
        return
    backend = sys.argv[1] if len(sys.argv) > 1 else "cpp_spmc"
    print(f"{backend} | packets | p50 us | p99 us | consumer's core\n|---|---|---|---|---|")
    for label, spin_us, packets in (
        ("spinning (spin_us 2000)", 2000, PACKETS),
        ("sleeping (spin_us 0)", 0, PACKETS),
        ("sleeping (default)", 20, PACKETS),
        ("idle (default)", 20, 0),
    ):
        print(f"| {label} | {measure(backend, spin_us, packets)} |", flush=True)


if __name__ == "__main__":
    main()
