"""What a hook on a GPU costs, and how fast payloads reach the bus; needs a CUDA device.

    python tests/benchmarks/device/compare.py [--rounds N] [--sizes 4096,1048576] [--json FILE]

Columns, all medians over rounds in which every variant runs once, in an order that rotates:
  thread us   time that the hook's call takes on the host's thread
  stream us   time that it adds to the host's stream, by events around a fixed piece of work, with the
              hook minus without it in the same round
  GB/s        bytes of the tensor per second from the first submit until the last packet is on the
              bus (cpp_spmc, a group that throws everything away)
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from asys_bench.capture.gpu.cuda_runtime import CudaRuntime
from asys_bench.capture.gpu.streamer import DeviceStreamer
from asys_bench.config.assembly import create_data_bus
from asys_bench.config.sections.bus import BusConfig, DeviceConfig
from asys_bench.contracts.bus import BaseDataBus, GroupSpec
from asys_bench.contracts.packet import DTYPE_CODE, Kind, PacketMeta
from asys_bench.contracts.preprocessor import Encoded, KernelPlugin, Preprocessor
from asys_bench.contracts.stats import StatsPage
from asys_bench.registry import registry

WIDTH = 1024
PACKETS = 32
KERNELS = ("identity", "int8", "fp8", "cast", "topk")


def meta_of(encoded: Encoded) -> PacketMeta:
    return PacketMeta(0, Kind.ACTIVATION, DTYPE_CODE[encoded.dtype], tuple(encoded.shape))


def build(name: str) -> Preprocessor:
    plugin = registry("kernel").get(name, KernelPlugin)
    return plugin.build(plugin.options())


@dataclass
class Variant:
    """A way to hand a tensor over: `call` is what the hook would do."""

    name: str
    call: Callable[[torch.Tensor], Any]
    finish: Callable[[], None]


class Sink(threading.Thread):
    """Throws packets away, in this process."""

    def __init__(self, bus: BaseDataBus) -> None:
        super().__init__(daemon=True)
        self._bus, self._stop_now = bus, threading.Event()

    def run(self) -> None:
        while not self._stop_now.is_set():
            with self._bus.pull_batch("g", 256, timeout_s=0.05):
                pass

    def end(self) -> None:
        self._stop_now.set()
        self.join()


def measure(variant: Variant, tensor: torch.Tensor, work: torch.Tensor) -> dict[str, float]:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def stream_us(hook: Callable[[torch.Tensor], Any] | None) -> float:
        torch.cuda.synchronize()
        torch.cuda._sleep(20_000_000)  # so that the host is ahead and only the stream is timed
        start.record()
        for _ in range(PACKETS):
            work.mul_(1.0)
            if hook is not None:
                hook(tensor)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3 / PACKETS

    without = stream_us(None)
    with_hook = stream_us(variant.call)
    variant.finish()
    torch.cuda.synchronize()
    began = time.perf_counter_ns()
    for _ in range(PACKETS):
        variant.call(tensor)
    called = time.perf_counter_ns()
    variant.finish()
    torch.cuda.synchronize()
    arrived = time.perf_counter_ns()
    nbytes = tensor.numel() * tensor.element_size() * PACKETS
    return {
        "thread_us": (called - began) / 1e3 / PACKETS,
        "stream_us": with_hook - without,
        "gbps": nbytes / (arrived - began),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sizes", default="4096,65536,1048576,16777216")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "no CUDA device: nothing to measure\n")
    device = torch.device("cuda", torch.cuda.current_device())
    sizes = [int(size) for size in arguments.sizes.split(",")]
    # Room for every packet of a measurement, so that nothing is dropped and nothing waits.
    mib = max(64, PACKETS * 2 * max(sizes) >> 20)
    bus = create_data_bus(BusConfig(backend="cpp_spmc", capacity_mib=mib), [GroupSpec("g")])
    sink = Sink(bus)
    sink.start()
    page = StatsPage.create(["host"])
    options = DeviceConfig(staging_mib=mib, buffer_mib=mib, max_in_flight=4 * PACKETS)
    streamer = DeviceStreamer(
        CudaRuntime(), bus.producer(0), threading.Lock(), options,
        devices=(device,), slot=page.slot("host"),
    )  # fmt: skip

    def finish():
        if streamer.drain(60):
            raise RuntimeError("packets are stuck")

    variants = [Variant("tensor.cpu()", lambda tensor: tensor.cpu(), lambda: None)]
    for name in KERNELS:
        kernel = build(name)
        streamer.prepare(kernel, [torch.float32])

        def call(tensor, kernel=kernel, name=name):
            if streamer.submit(tensor, kernel, meta_of, key=name) is not None:
                raise RuntimeError("a packet was dropped: the figures would be wrong")

        variants.append(Variant(name, call, finish))
    found: dict[tuple[int, str], list[dict[str, float]]] = defaultdict(list)
    work = torch.ones(1 << 20, device=device)
    for size in sizes:
        tensor = torch.randn(max(1, size // (4 * WIDTH)), WIDTH, device=device)
        for variant in variants:
            measure(variant, tensor, work)  # compiles and first touches
        for index in range(arguments.rounds):
            turn = index % len(variants)
            for variant in variants[turn:] + variants[:turn]:
                found[size, variant.name].append(measure(variant, tensor, work))
    properties = torch.cuda.get_device_properties(device)
    print(
        f"{torch.cuda.get_device_name(device)}, {properties.multi_processor_count} SMs, "
        f"torch {torch.__version__}, CUDA {torch.version.cuda}; {arguments.rounds} rounds"
    )
    for name, metric in page.slot("host").metrics().items():
        if name.startswith("device_copy_gbps"):
            print(f"  {name} {metric.value:.2f}")
    print(f"{'bytes':>10} {'variant':32} {'thread us':>10} {'stream us':>10} {'GB/s':>8}")
    rows = []
    for (size, name), results in found.items():
        medians = {key: statistics.median(r[key] for r in results) for key in results[0]}
        rows.append({"bytes": size, "variant": name, **medians})
        print(
            f"{size:>10} {name:32} {medians['thread_us']:>10.1f} {medians['stream_us']:>10.1f} "
            f"{medians['gbps']:>8.2f}"
        )
    streamer.close()
    account = streamer.account()
    if account.committed != account.submitted:
        print(f"INVALID: {account}")
    sink.end()
    bus.close()
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"device": torch.cuda.get_device_name(device), "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
