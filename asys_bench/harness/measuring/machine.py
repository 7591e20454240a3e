"""What the machine is (identity, by which results compare) and what state it is in."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import asys_bench
from asys_bench.contracts.scenario import ScenarioPlugin
from asys_bench.harness.results.result import Machine

_VERSIONS = ("torch", "numpy", "asys-i")
_CPU0 = Path("/sys/devices/system/cpu/cpu0")


def capture_machine(machine_class: str) -> Machine:
    """This machine, now."""
    identity = _identity()
    text = json.dumps(identity, sort_keys=True)
    return Machine(
        machine_class=machine_class,
        identity=identity,
        identity_sha256=hashlib.sha256(text.encode()).hexdigest(),
        state=_state(),
    )


def governor() -> str | None:
    """CPU frequency governor of the first CPU; None where there is no control (most VMs)."""
    return _read(_CPU0 / "cpufreq" / "scaling_governor")


def turbo() -> str | None:
    """ "on" or "off"; None when the kernel does not say."""
    no_turbo = _read(Path("/sys/devices/system/cpu/intel_pstate/no_turbo"))
    if no_turbo is not None:
        return "off" if no_turbo == "1" else "on"
    boost = _read(Path("/sys/devices/system/cpu/cpufreq/boost"))
    return None if boost is None else ("on" if boost == "1" else "off")


def memory_mib(field: str) -> int | None:
    """A field of /proc/meminfo in MiB."""
    for line in (_read(Path("/proc/meminfo")) or "").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) >> 10
    return None


def _identity() -> dict[str, str | int]:
    cpu = next(
        (line.split(":", 1)[1].strip()
         for line in (_read(Path("/proc/cpuinfo")) or "").splitlines()
         if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )  # fmt: skip
    found: dict[str, str | int] = {
        "cpu": cpu,
        "cores": os.cpu_count() or 0,
        "usable_cores": len(os.sched_getaffinity(0)),
        "memory_mib": memory_mib("MemTotal") or 0,
        "kernel": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "libc": " ".join(platform.libc_ver()),
    }
    for index in _caches():
        level, kind, size = (_read(index / name) for name in ("level", "type", "size"))
        if level and size and kind != "Instruction":
            found[f"cache_l{level}"] = size
    for name in _VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _state() -> dict[str, str | int | float | None]:
    return {
        "governor": governor(),
        "turbo": turbo(),
        "load_1m": round(os.getloadavg()[0], 2),
        "memory_available_mib": memory_mib("MemAvailable"),
        "clock_source": _read(
            Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
        ),
        "aslr": _read(Path("/proc/sys/kernel/randomize_va_space")),
        "transparent_hugepages": _read(Path("/sys/kernel/mm/transparent_hugepage/enabled")),
        "uptime_s": int(time.monotonic()),
    }


def _caches() -> list[Path]:
    folder = _CPU0 / "cache"
    return sorted(folder.glob("index*")) if folder.is_dir() else []


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


# Where a result comes from: commit, and hashes of the plugins that were measured.

_SOURCES = (".py", ".so", ".cpp", ".hpp")


def commit() -> tuple[str | None, bool | None]:
    """(commit, uncommitted changes) of the checkout this package runs from; None outside one."""
    folder = Path(asys_bench.__file__).resolve().parent
    head = _git(folder, "rev-parse", "HEAD")
    if not head:
        return None, None
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return head.strip(), None if status is None else bool(status.strip())


def build_hashes(plugin: object) -> dict[str, str]:
    """File name -> SHA-256 of the sources and compiled modules beside the plugin's module."""
    target = plugin.run if isinstance(plugin, ScenarioPlugin) else getattr(plugin, "build", None)
    module = sys.modules.get(getattr(target, "__module__", "") or "")
    path = getattr(module, "__file__", None)
    if path is None:
        return {}
    folder = Path(path).parent
    files = [Path(path)] if isinstance(plugin, ScenarioPlugin) else sorted(folder.iterdir())
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.suffix in _SOURCES and file.is_file()
    }


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
