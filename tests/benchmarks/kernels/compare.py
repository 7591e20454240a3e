"""CPU kernels in one interleaved run: medians, and ratios taken within each round.

    python tests/benchmarks/kernels/compare.py [--rounds N] [--shapes 256x1024,1x1024] [--only int8]

Every round times each contender once, in an order that rotates. Tensors are float32. In "warm" rounds
each call reads the same tensor, as a hook does that runs right after the layer that wrote it; in "cold"
rounds the calls go through 64 MiB of them. The output lies in 4 MiB that are used over and over, as the
bus's memory is. Interval: order statistics, 95 %.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from contenders import Contender, contenders

from asys_bench.harness.judging.stats import median_span, ratio_span

READ = "read once (C++ sum)"
OUT_BYTES = 4 << 20
COLD_BYTES = 64 << 20
ALPHA = 0.05
Times = dict[str, list[float]]


class Memory:
    """Tensors of one shape, and where their payloads go."""

    def __init__(self, shape: tuple[int, int], cold: bool) -> None:
        nbytes = shape[0] * shape[1] * 4
        count = max(1, COLD_BYTES // nbytes) if cold else 1
        generator = torch.Generator().manual_seed(0)
        self.tensors = [torch.randn(shape, generator=generator) for _ in range(count)]
        room = -(-(nbytes * 2 + 4096) // 64) * 64
        lines = torch.zeros(max(OUT_BYTES, room) // 64 + 1, 64, dtype=torch.uint8).reshape(-1)
        start = -lines.data_ptr() % 64  # the bus hands out whole cache lines too
        memory = lines.numpy().data[start : start + max(OUT_BYTES, room)]
        self.outs = [
            memory[at : at + room] for at in range(0, max(1, len(memory) - room + 1), room)
        ]


def microseconds(contender: Contender, memory: Memory, calls: int) -> float:
    """Median time of a call; short calls are timed in tens."""
    tensors, outs = memory.tensors, memory.outs
    batch = 10 if tensors[0].numel() * 4 < 1 << 16 else 1
    samples = []
    call, turn = contender.call, 0
    for _ in range(max(3, calls // batch)):
        started = time.perf_counter_ns()
        for _ in range(batch):
            call(tensors[turn % len(tensors)], outs[turn % len(outs)])
            turn += 1
        samples.append((time.perf_counter_ns() - started) / batch / 1000)
    samples.sort()
    return samples[len(samples) // 2]


def measure(found: Sequence[Contender], memory: Memory, rounds: int, budget_ms: float) -> Times:
    """Microseconds per call, one value per round."""
    times: Times = defaultdict(list)
    calls = {}
    for contender in found:
        once = microseconds(contender, memory, 3)  # also the warm-up
        calls[contender.name] = int(min(2000, max(5, budget_ms * 1000 / max(once, 0.1))))
    for turn in range(rounds):
        order = [*found[turn % len(found) :], *found[: turn % len(found)]]
        for contender in order:
            times[contender.name].append(microseconds(contender, memory, calls[contender.name]))
    return times


def cell(values: Sequence[float], references: Sequence[float] | None = None) -> str:
    """Median and interval of values, or of the ratios to `references` round by round."""
    span = (
        median_span(values, ALPHA) if references is None else ratio_span(values, references, ALPHA)
    )
    return f"{span.estimate:.3g} ({span.low:.3g}..{span.high:.3g})"


def report(title: str, found: Sequence[Contender], times: Times) -> None:
    """A Markdown table."""
    print(f"\n### {title}\n")
    print("| | us per call | x read once | plain torch takes ... x as long |")
    print("|---|---|---|---|")
    for contender in found:
        mine = times[contender.name]
        plain = cell(times[contender.plain], mine) if contender.plain else ""
        print(f"| {contender.name} | {cell(mine)} | {cell(mine, times[READ])} | {plain} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--shapes", default="256x1024,1x1024", help="rows x elements of float32")
    parser.add_argument("--only", default="", help="kernels whose name holds this")
    parser.add_argument("--budget-ms", type=float, default=20, help="of one contender in one round")
    parser.add_argument("--threads", type=int, default=0, help="torch's threads; 0 leaves them")
    parser.add_argument(
        "--no-reference", action="store_true", help="leave the torch references out"
    )
    parser.add_argument("--warm-only", action="store_true")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.rounds} rounds"
    )
    record = {}
    for text in arguments.shapes.split(","):
        rows, width = map(int, text.split("x"))
        for cold in (False,) if arguments.warm_only else (False, True):
            memory = Memory((rows, width), cold)
            tensor = memory.tensors[0]
            found = list(contenders(tensor, arguments.only, not arguments.no_reference))
            title = f"{rows} x {width} ({tensor.nbytes >> 10} KiB), {'cold' if cold else 'warm'}"
            with torch.inference_mode():
                times = measure(found, memory, arguments.rounds, arguments.budget_ms)
            report(title, found, times)
            record[title] = times
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
