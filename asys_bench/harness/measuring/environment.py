"""Checks of the machine that a suite asks for: what it wants, what there is, and the fix."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from asys_bench.harness.measuring import machine
from asys_bench.harness.measuring.noise import spin_gap_us
from asys_bench.harness.planning.suite import EnvironmentCheck
from asys_bench.harness.results.result import CheckResult
from asys_bench.reports.page.quantity import brief


@dataclass(frozen=True)
class Known:
    """One thing that can be checked. `measure` returns None when the machine does not tell."""

    measure: Callable[[], str | float | None]
    summary: str
    fix: str


def _spin_p99_us() -> float:
    """p99 of the longest gap in 100 spins of 2 ms."""
    gaps = sorted(spin_gap_us(0.002) for _ in range(100))
    return gaps[98]


def _free_shm_mib() -> float | None:
    try:
        stat = os.statvfs("/dev/shm")
    except OSError:
        return None
    return (stat.f_bavail * stat.f_frsize) / (1 << 20)


CHECKS: Mapping[str, Known] = {
    "governor": Known(
        machine.governor, "CPU frequency governor", "sudo cpupower frequency-set -g performance"
    ),
    "turbo": Known(
        machine.turbo,
        "turbo boost",
        "echo 1 | sudo tee /sys/devices/system/cpu/intel_pstate/no_turbo",
    ),
    "noise_floor_us": Known(
        _spin_p99_us,
        "p99 of the longest gap of a spinning thread, in 2 ms windows",
        "close other programs, or give the benchmark cores of its own (isolcpus, cpuset)",
    ),
    "cores": Known(
        lambda: float(len(os.sched_getaffinity(0))), "usable cores", "use a machine with more cores"
    ),
    "load_1m": Known(
        lambda: os.getloadavg()[0], "load average of the last minute", "wait until others are done"
    ),
    "memory_available_mib": Known(
        lambda: machine.memory_mib("MemAvailable"), "free memory, MiB", "close other programs"
    ),
    "shm_free_mib": Known(_free_shm_mib, "/dev/shm, MiB free", "docker: run with --shm-size=1g"),
    "git": Known(lambda: "yes" if shutil.which("git") else "no", "git on PATH", "install git"),
}


def run_checks(wanted: Mapping[str, EnvironmentCheck]) -> list[CheckResult]:
    """Every check of the suite; unknown names have been refused when it was read."""
    return [_check(name, wanted[name], CHECKS[name]) for name in wanted]


def _check(name: str, wanted: EnvironmentCheck, known: Known) -> CheckResult:
    got = known.measure()
    wants, ok = [], got is not None
    if wanted.want is not None:
        wants.append(str(wanted.want))
        shown = f"{got:g}" if isinstance(got, float) else str(got)
        ok = ok and shown == str(wanted.want)
    number = got if isinstance(got, int | float) else None
    for label, limit in (("<=", wanted.p99_max), ("<=", wanted.max)):
        if limit is not None:
            wants.append(f"{label} {limit:g}")
            ok = ok and number is not None and number <= limit
    if wanted.min is not None:
        wants.append(f">= {wanted.min:g}")
        ok = ok and number is not None and number >= wanted.min
    shown = "unknown here" if got is None else brief(number) if number is not None else str(got)
    return CheckResult(
        name=name,
        want=" and ".join(wants) or "shown only",
        got=shown,
        ok=ok or not wants,
        level=wanted.level,
        fix="" if ok or not wants else known.fix,
    )
