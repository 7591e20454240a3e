"""Bus against peers in one interleaved run: medians, and ratios taken within each round.

    python tests/benchmarks/bus/compare.py [--rounds N] [--sizes 4096,65536] [--mib 512] [--json FILE]

Each round measures, per size, the cache-line time, the two-process C reference `copy_pipeline` with
both kinds of stores (the better of the two is the round's reference), and every contender once, in
an order that rotates from round to round. A contender that is not installed is left out and named.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
TRANSPORTS = HERE.parents[2] / "suites/peers/transports.py"
sys.path.insert(0, str(TRANSPORTS.parent))

from transports import CAPACITY_BYTES, CONTENDERS  # noqa: E402

PEERS = ("mp.Queue", "pyzmq", "iceoryx2", "zenoh shm")
TIMEOUT_S = 120


def build_reference(folder: str) -> Path:
    """Compile `copy_pipeline`."""
    binary = Path(folder) / "copy_pipeline"
    command = ["g++", "-O3", "-march=native", "-std=c++20", "-o", str(binary)]
    subprocess.run([*command, str(HERE / "copy_pipeline.cpp")], check=True)
    return binary


def reference(binary: Path, *arguments: object) -> float:
    done = subprocess.run(
        [binary, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        timeout=TIMEOUT_S,
    )
    return float(done.stdout)


def contender(name: str, nbytes: int, packets: int) -> float | None:
    """GB/s, or None when it is not installed or failed."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(TRANSPORTS), name, str(nbytes), str(packets)],
            capture_output=True, text=True, timeout=TIMEOUT_S, check=True,
        )  # fmt: skip
        return json.loads(done.stdout).get("gbps")
    except (subprocess.SubprocessError, json.JSONDecodeError) as error:
        print(f"  {name}: failed: {error}", file=sys.stderr)
        return None


def interval(values: list[float]) -> tuple[float, float]:
    """Order-statistic interval for the median, about 95 % from 6 rounds on; else the range."""
    ordered = sorted(values)
    skip = {6: 0, 7: 0, 8: 0, 9: 1, 10: 1, 11: 1, 12: 2, 13: 2, 14: 2, 15: 3, 16: 3}.get(
        len(ordered), 0
    )
    return ordered[skip], ordered[-1 - skip]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--sizes", default="4096,65536,1048576,16777216")
    parser.add_argument("--mib", type=int, default=512, help="payload per measurement")
    parser.add_argument("--only", default="", help="comma-separated contenders")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    names = [name for name in CONTENDERS if not arguments.only or name in arguments.only.split(",")]
    found: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as folder:
        binary = build_reference(folder)
        for round_index in range(arguments.rounds):
            for nbytes in map(int, arguments.sizes.split(",")):
                packets = max(16, (arguments.mib << 20) // nbytes)
                row = found[nbytes]
                row["cache line ns"].append(reference(binary, "ping"))
                for kind in ("cached", "streaming"):
                    row[f"copy_pipeline {kind}"].append(
                        reference(binary, nbytes, packets, kind, CAPACITY_BYTES)
                    )
                row["copy_pipeline"].append(
                    max(row["copy_pipeline cached"][-1], row["copy_pipeline streaming"][-1])
                )
                turn = round_index % len(names)
                for name in names[turn:] + names[:turn]:
                    value = contender(name, nbytes, packets)
                    row[name].append(value if value is not None else float("nan"))
    report(found, names)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=1))


def report(found: dict[int, dict[str, list[float]]], names: list[str]) -> None:
    """Markdown tables."""
    for nbytes, row in found.items():
        print(f"\n### {nbytes} bytes\n")
        print("| | GB/s median (interval) | x copy_pipeline | x best peer | x mp.Queue |")
        print("|---|---|---|---|---|")
        best = [
            max(values)
            for values in zip(*(row[p] for p in PEERS if p in row), strict=True)
            if all(value == value for value in values)
        ]
        for name in ("cache line ns", "copy_pipeline cached", "copy_pipeline streaming", *names):
            values = [value for value in row[name] if value == value]
            if not values:
                print(f"| {name} | not measured | | | |")
                continue
            low, high = interval(values)
            cells = [f"{statistics.median(values):.3g} ({low:.3g}..{high:.3g})"]
            for others in (row["copy_pipeline"], best, row.get("mp.Queue", [])):
                if name in names and len(others) == len(row[name]) == len(values):
                    ratios = [a / b for a, b in zip(row[name], others, strict=True)]
                    low, high = interval(ratios)
                    cells.append(f"{statistics.median(ratios):.2f} ({low:.2f}..{high:.2f})")
                else:
                    cells.append("")
            print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
