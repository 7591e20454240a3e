"""Which two cores a comparison runs on, and how far from each other they are at the moment.

The cores of a virtual machine move between caches: what one of them wrote reaches the other in about
50 ns or in about 250 ns, and one figure over both says nothing. So a cache line is sent to and fro
beside each measurement (`copy_pipeline.cpp`), and near and far measurements are reported apart.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

SOURCE = Path(__file__).with_name("copy_pipeline.cpp")
REGIMES = ("near", "far")
NEAR_NS, FAR_NS = 110.0, 160.0
"""At most: near. At least: far. What lies between, or moves during a measurement, is neither."""
LEAST_ROUNDS = 12
"""Of a regime, before anything is said about it."""
TIMEOUT_S = 120


def pair() -> tuple[int, int]:
    """The producer's and the consumer's CPU: the first two that are allowed; (-1, -1) with one."""
    allowed = sorted(os.sched_getaffinity(0))
    return (allowed[0], allowed[1]) if len(allowed) > 1 else (-1, -1)


def pin(cpu: int) -> None:
    """This thread alone: threads that a library has started already keep all CPUs."""
    if cpu >= 0:
        os.sched_setaffinity(0, {cpu})


def built() -> Path | None:
    """`copy_pipeline`, compiled once into the user's cache; None without a compiler."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "asys-i"
    program = cache / f"copy_pipeline-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}"
    if program.exists():
        return program
    compiler = shutil.which("g++")
    if compiler is None:
        return None
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        made = Path(folder) / program.name
        flags = ["-O3", "-march=native", "-std=c++20"]
        subprocess.run([compiler, *flags, "-o", str(made), str(SOURCE)], check=True)
        made.replace(program)
    return program


def call(program: Path, *arguments: object) -> float:
    """The figure that `copy_pipeline` prints: ns or GB/s."""
    command = [str(program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
    return float(done.stdout)


def ping_ns(program: Path, cpus: tuple[int, int]) -> float:
    """One way of a cache line between the two, in ns."""
    return call(program, "ping", *cpus)


def regime(pings_ns: Sequence[float]) -> str | None:
    """`near` or `far` where every ping around a measurement says so."""
    if pings_ns and max(pings_ns) <= NEAR_NS:
        return "near"
    return "far" if pings_ns and min(pings_ns) >= FAR_NS else None
