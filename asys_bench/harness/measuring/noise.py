"""Noise: what the machine did to a round, taken from the kernel and from a spinning thread.

A round is replaced on this evidence only, never on its own latency: throwing out slow rounds is
choosing the answer.
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from pathlib import Path

from asys_bench.harness.planning.suite import NoiseLimits
from asys_bench.harness.results.result import Noise

SPIN_S = 0.005
_TICK_MS = 10.0  # USER_HZ is 100 on every Linux port Python runs on


@dataclass(frozen=True, slots=True)
class _Reading:
    at_s: float
    switches: int
    steal_ms: float | None
    pressure_ms: float | None


class NoiseWatch:
    """Readings before and after the timed part of a round, and a spin on either side."""

    def __init__(self) -> None:
        self._gap_us = spin_gap_us()
        self._before = _read()
        self.wall_s = 0.0

    def stop(self) -> Noise:
        """The evidence, not yet judged."""
        after, before = _read(), self._before
        self.wall_s = after.at_s - before.at_s
        gap_us = max(self._gap_us, spin_gap_us())
        return Noise(
            involuntary_switches=after.switches - before.switches,
            steal_ms=_difference(after.steal_ms, before.steal_ms),
            pressure_ms=_difference(after.pressure_ms, before.pressure_ms),
            spin_gap_us=gap_us,
        )


def judge_noise(noise: Noise, wall_s: float, limits: NoiseLimits) -> Noise:
    """`noise` with its verdict: which limits were passed. Pure."""
    wall_s = max(wall_s, 1e-9)
    figures: list[tuple[str, float | None, float | None]] = [
        ("spin gap us", noise.spin_gap_us, limits.spin_gap_us),
        ("steal ratio", _ratio(noise.steal_ms, wall_s), limits.steal_ratio),
        ("pressure ratio", _ratio(noise.pressure_ms, wall_s), limits.pressure_ratio),
        (
            "involuntary switches/s",
            None if noise.involuntary_switches is None else noise.involuntary_switches / wall_s,
            limits.involuntary_per_s,
        ),
    ]
    evidence = [
        f"{name} {value:.3g} > {limit:g}"
        for name, value, limit in figures
        if value is not None and limit is not None and value > limit
    ]
    return noise.model_copy(update={"noisy": bool(evidence), "evidence": evidence})


def spin_gap_us(duration_s: float = SPIN_S) -> float:
    """Longest time between two readings of the clock by a thread that does nothing else."""
    clock = time.perf_counter_ns
    last = clock()
    end = last + int(duration_s * 1e9)
    longest = 0
    while last < end:
        now = clock()
        if now - last > longest:
            longest = now - last
        last = now
    return longest / 1e3


def _read() -> _Reading:
    switches = sum(
        resource.getrusage(who).ru_nivcsw
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return _Reading(time.monotonic(), switches, _steal_ms(), _pressure_ms())


def _steal_ms() -> float | None:
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        return int(fields[8]) * _TICK_MS
    except (OSError, IndexError, ValueError):
        return None


def _pressure_ms() -> float | None:
    try:
        line = Path("/proc/pressure/cpu").read_text().split("\n", 1)[0]
        return int(line.rsplit("total=", 1)[1]) / 1e3
    except (OSError, IndexError, ValueError):
        return None


def _difference(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else max(0.0, after - before)


def _ratio(milliseconds: float | None, wall_s: float) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3 / wall_s
