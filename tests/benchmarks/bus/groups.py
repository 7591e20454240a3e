"""What a second and third consumer group cost the producer: time to push a burst that fits the ring.

    python tests/benchmarks/bus/groups.py [BACKEND]

The groups' readers sleep during the burst, so that this measures the producer and not the number of
cores; rounds with one and three groups alternate. Prints the ratio of the producer's throughput.
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np

from asys_bench.contracts.bus import BusPlugin, BusRequest, GroupSpec
from asys_bench.contracts.packet import PacketMeta
from asys_bench.registry import registry

ROUNDS = 30
BURSTS = {4096: 4000, 65536: 800, 1048576: 50}


def burst_s(backend: str, groups: int, nbytes: int) -> float:
    """Seconds to push one burst, best of three on one bus."""
    plugin = registry("backend").get(backend, BusPlugin)
    specs = tuple(GroupSpec(f"g{index}") for index in range(groups))
    request = BusRequest(groups=specs, capacity_packets=8192, options=plugin.options())
    rows = np.random.default_rng(0).integers(0, 255, (64, nbytes), dtype=np.uint8)
    meta = PacketMeta(0, 0, 5, (nbytes,))
    with plugin.build(request) as bus:
        producer = bus.producer(0)
        readers = [bus.subscribe(spec.name, "reader") for spec in specs]
        best = float("inf")
        for _ in range(3):
            started = time.perf_counter()
            for index in range(BURSTS[nbytes]):
                if not producer.try_push(meta, rows[index % 64]):
                    raise SystemExit(f"{nbytes}: the burst does not fit")
            best = min(best, time.perf_counter() - started)
            for reader in readers:
                while reader.pull_batch(4096, 0.0).release():
                    pass
        for reader in readers:
            reader.close()
    return best


def main() -> None:
    backend = sys.argv[1] if len(sys.argv) > 1 else "cpp_spmc"
    for nbytes in BURSTS:
        ratios = []
        for turn in range(ROUNDS):
            order = (1, 3) if turn % 2 else (3, 1)
            seconds = {groups: burst_s(backend, groups, nbytes) for groups in order}
            ratios.append(seconds[1] / seconds[3])
        low, high = sorted(ratios)[9], sorted(ratios)[-10]
        print(
            f"{backend} {nbytes} B: {statistics.median(ratios):.2f} x one group ({low:.2f}..{high:.2f})"
        )


if __name__ == "__main__":
    main()
