"""How cost grows: hooks, bytes of a row, readers, groups of them, ranks, features of an SAE.

    python -P tests/stress/cost_scaling.py [PART...] [--rounds N] [--svg FILE]

Prints tables and one JSON line; FILE gets the curves (matplotlib).

Costs are CPU time, since there are more processes than cores here; each value is the median of rounds that go
through all sizes in turn, each size in a process of its own. The exponent is the slope of log(cost) over
log(size), by least squares: 1 is linear, 0 does not grow. Parts:

    hooks      CPU time of the host for a captured call; of `observe()`, and memory that it adds, for a hook
    row_bytes  CPU time of the host for a captured call of one row
    readers    CPU time of all processes for a packet of 64 KiB; the readers share one group's packets
    groups     the same; one reader a group, and every group gets every packet; a bus has 7 at most
    ranks      CPU time of all processes for a packet of 64 KiB; a writer and a shard each, one reader
    features   CPU time of a training step for a row of 256 numbers, k = 32
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import asys_bench
from asys_bench.contracts.bus import BusHandle, BusPlugin, BusRequest, Delivery, GroupSpec
from asys_bench.contracts.packet import PacketMeta
from asys_bench.registry import registry
from asys_bench.sae import SAEConfig, SAETrainer

Costs = dict[str, float]
PACKET, PACKETS = 64 << 10, 4000
BLOCKS = 16
"""With hooks and without, in turn."""
GROUPS = 20
"""Timings of a block."""
CALLS, BYTES = 64, 512 << 10
"""At most so many calls of hooks, and bytes that they capture, between two pauses: one call after a pause
costs what it takes to fetch its code again, and readers must keep up."""


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def memory_mib() -> float:
    """Resident memory of this process, the shared memory that it has touched included."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


class Chain(torch.nn.Module):
    """`hooks` small layers, one after the other."""

    def __init__(self, hooks: int, width: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(hooks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def passes_us(model: torch.nn.Module, x: torch.Tensor, groups: int, each: int) -> list[float]:
    """CPU microseconds of this thread of a forward pass, over `each` of them at a time; after these, those
    who read get a moment."""
    spent = []
    with torch.no_grad():
        for _ in range(groups):
            began = time.thread_time_ns()
            for _ in range(each):
                model(x)
            spent.append((time.thread_time_ns() - began) / each / 1e3)
            time.sleep(0.002)
    return spent


def hooks_us(observation: Any, model: torch.nn.Module, x: torch.Tensor, each: int) -> float:
    """What the hooks add to a forward pass: medians of blocks with them and without, in turn."""
    hooker = observation.session.hooker
    blocks: dict[bool, list[float]] = {True: [], False: []}
    for number in range(BLOCKS):
        on = bool((number + number // 2) % 2)
        (hooker.attach if on else hooker.detach)()
        blocks[on] += passes_us(model, x, GROUPS, each)[1:]
    hooker.attach()
    return statistics.median(blocks[True]) - statistics.median(blocks[False])


def observed(
    model: torch.nn.Module, x: torch.Tensor, hooks: int, nbytes: int, folder: str
) -> Costs:
    """What an observation with an archiver costs the host; a call captures `nbytes`."""
    passes_us(model, x, 10, 1)
    before_s, before_mib, began = cpu_s(), memory_mib(), time.perf_counter()
    with asys_bench.observe(
        model, hooks="layers.*", sae=False, quiet=True, monitors={"log": None},
        run={"dir": folder, "fsync": "never"}, bus={"backend": "cpp_spmc", "capacity_packets": 1 << 16},
    ) as observation:  # fmt: skip
        found = {
            "start CPU s": cpu_s() - before_s,
            "start wall s": time.perf_counter() - began,
            "memory MiB": memory_mib() - before_mib,
        }
        passes_us(model, x, 10, 1)
        each = max(1, min(CALLS // hooks, BYTES // (hooks * nbytes)))
        found["call us"] = hooks_us(observation, model, x, each) / hooks
    return found


def hooks(size: int) -> Costs:
    with tempfile.TemporaryDirectory() as folder:
        return observed(Chain(size, 16), torch.randn(4, 16), size, 256, folder)


def row_bytes(size: int) -> Costs:
    with tempfile.TemporaryDirectory() as folder:
        model, x = Chain(8, 8), torch.randn(1, 8)
        wide = torch.randn(1, size // 4)

        class Wide(torch.nn.Module):
            def forward(self, _: torch.Tensor) -> torch.Tensor:
                return wide

        model.layers = torch.nn.ModuleList(Wide() for _ in range(8))
        return {"call us": observed(model, x, 8, size, folder)["call us"]}


def make_bus(groups: int, shards: int) -> Any:
    plugin = registry("backend").get("cpp_spmc", BusPlugin)
    options = plugin.options.model_validate({"poll_us": 500})  # as runs do
    return plugin.build(
        BusRequest(
            groups=tuple(GroupSpec(f"g{n}", Delivery.AT_LEAST_ONCE) for n in range(groups)), shards=shards,
            capacity_packets=1 << 12, capacity_bytes=64 << 20, names=("layer",), options=options,
        )
    )  # fmt: skip


def forked(action: Callable[[], float]) -> Callable[[], float]:
    """Run `action` in a child; call the result for the CPU seconds that it says its work took."""
    spent = multiprocessing.Value("d", 0.0)
    pid = os.fork()
    if pid == 0:
        try:
            spent.value = action()
        finally:
            os._exit(0)

    def join() -> float:
        os.waitpid(pid, 0)
        return float(spent.value)

    return join


def attached(handle: BusHandle) -> Any:
    plugin = registry("backend").get("cpp_spmc", BusPlugin)
    return plugin.attach(BusHandle.from_dict(handle.to_dict(), handle.fds))


def read(handle: BusHandle, group: str, name: str = "reader") -> float:
    """Read to the end; CPU seconds without those of the start."""
    reader = attached(handle).subscribe(group, name)
    before = cpu_s()
    while not reader.ended:
        with reader.pull_batch(64, 0.05) as lease:
            len(lease)
    return cpu_s() - before


def push(producer: Any, hook: int, packets: int) -> float:
    """CPU seconds."""
    body = torch.zeros(PACKET, dtype=torch.uint8)
    before = cpu_s()
    for number in range(packets):
        assert producer.push(PacketMeta(hook, 0, 5, (PACKET,), host_step=number), body, 30.0)
    return cpu_s() - before


def per_packet(writers_s: float, readers_s: float, took_s: float) -> Costs:
    return {
        "writers us": 1e6 * writers_s / PACKETS,
        "readers us": 1e6 * readers_s / PACKETS,
        "packet us": 1e6 * (writers_s + readers_s) / PACKETS,
        "packets/s": PACKETS / took_s,
    }


def through(bus: Any, ends: list[Callable[[], float]], shards: int = 1) -> Costs:
    """Push from as many processes as shards; `ends`: of the readers."""
    handle, each = bus.handle(), PACKETS // shards

    def write(shard: int) -> float:
        return push(attached(handle).attach_producer(shard, shard), 0, each)

    time.sleep(0.5)
    began = time.perf_counter()
    writers = [forked(lambda shard=shard: write(shard)) for shard in range(1, shards)]  # type: ignore[misc]
    writers_s = push(bus.producer(), bus.intern("layer"), each)
    writers_s += sum(one() for one in writers)
    bus.finish()
    readers_s = sum(end() for end in ends)
    took_s = time.perf_counter() - began
    bus.close()
    return per_packet(writers_s, readers_s, took_s)


def readers(size: int) -> Costs:
    bus = make_bus(1, 1)
    handle = bus.handle()
    return through(
        bus,
        [forked(lambda name=f"reader-{n}": read(handle, "g0", name)) for n in range(size)],  # type: ignore[misc]
    )


def groups(size: int) -> Costs:
    bus = make_bus(size, 1)
    handle = bus.handle()
    return through(bus, [forked(lambda group=f"g{n}": read(handle, group)) for n in range(size)])  # type: ignore[misc]


def ranks(size: int) -> Costs:
    bus = make_bus(1, size)
    handle = bus.handle()
    return through(bus, [forked(lambda: read(handle, "g0"))], size)


def features(size: int) -> Costs:
    torch.manual_seed(0)
    rows = 1024
    trainer = SAETrainer(SAEConfig(d_sae=size, k=32, batch_rows=rows, threads=1))
    directions_FD = torch.nn.functional.normalize(torch.randn(2048, 256), dim=1)
    spent = []
    for step in range(14):
        codes_BF = torch.rand(rows, 2048) * (torch.rand(rows, 2048) < 16 / 2048)
        batch_BD = codes_BF @ directions_FD
        before, taken = cpu_s(), trainer.steps
        trainer.ingest(batch_BD, (0, 0, step))
        trainer.train(wait_for_fill=False)
        steps = trainer.steps - taken
        if step >= 4 and steps:
            spent.append((cpu_s() - before) / steps)
    return {"row us": 1e6 * statistics.median(spent) / rows}


PARTS: dict[str, tuple[Callable[[int], Costs], tuple[int, ...], str]] = {
    "hooks": (hooks, (1, 8, 64, 512), "call us"),
    "row_bytes": (row_bytes, (64, 256, 1024, 4096, 16384, 65536), "call us"),
    "readers": (readers, (1, 4, 16), "packet us"),
    "groups": (groups, (1, 2, 4, 7), "packet us"),
    "ranks": (ranks, (1, 2, 4), "packet us"),
    "features": (features, (2048, 4096, 8192, 16384, 32768, 65536), "row us"),
}


def exponent(sizes: list[int], costs: list[float]) -> float:
    """Slope of log(cost) over log(size); NaN where a cost is not above zero."""
    if min(costs) <= 0:
        return math.nan
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def measured(part: str, size: int) -> Costs:
    """In a fresh process."""
    import subprocess

    done = subprocess.run(
        [sys.executable, "-P", __file__, "--one", part, str(size)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{part} {size}: {done.stderr[-2000:]}")
    found: Costs = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def apart(costs: list[float]) -> list[float]:
    """Those whose labels do not lie over each other on a logarithmic axis."""
    least = (max(costs) / min(costs)) ** 0.06
    kept: list[float] = []
    for cost in sorted(costs):
        if not kept or cost > kept[-1] * least:
            kept.append(cost)
    return kept


def draw(told: dict[str, Any], file: Path) -> None:
    """A panel for each part, both axes logarithmic."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "asys-i"  # the same figures make the same file
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, math.ceil(len(told) / 2), figsize=(11, 6.5), squeeze=False)
    for panel, (part, found) in zip(panels.flat, told.items(), strict=False):
        cost = PARTS[part][2]
        panel.loglog(found["sizes"], found[cost], marker="o")
        panel.set_xticks(found["sizes"], [f"{size:,}" for size in found["sizes"]], minor=False)
        told_costs = apart(found[cost])
        panel.set_yticks(told_costs, [f"{one:.3g}" for one in told_costs], minor=False)
        panel.tick_params(labelsize=7)
        panel.minorticks_off()
        panel.set(xlabel=part.replace("_", " "), ylabel=f"CPU {cost}")
        panel.set_title(f"exponent {found['exponent']:.2f}", fontsize=9)
        panel.grid(True, alpha=0.3)
    for panel in panels.flat[len(told) :]:
        panel.set_axis_off()
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--one", action="store_true")
    asked = parser.parse_args()
    if asked.one:
        part, size = asked.parts
        torch.set_num_threads(1)
        print(json.dumps(PARTS[part][0](int(size))))
        return
    told: dict[str, Any] = {}
    for part in asked.parts:
        _, sizes, cost = PARTS[part]
        rounds = [[measured(part, size) for size in sizes] for _ in range(asked.rounds)]
        names = list(rounds[0][0])
        medians = {
            name: [
                statistics.median(one[place][name] for one in rounds) for place in range(len(sizes))
            ]
            for name in names
        }
        told[part] = {"sizes": sizes, **medians, "exponent": exponent(list(sizes), medians[cost])}
        print(f"| {part} | " + " | ".join(names) + " |")
        for place, size in enumerate(sizes):
            print(
                f"| {size:,} | "
                + " | ".join(f"{medians[name][place]:.4g}" for name in names)
                + " |"
            )
        print(f"exponent of {cost}: {told[part]['exponent']:.2f}\n", flush=True)
    print(json.dumps(told))
    if asked.svg is not None:
        draw(told, asked.svg)


if __name__ == "__main__":
    main()
