"""`asys-bench doctor`: what this machine has, what is missing, and the fix; changes nothing."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from asys_bench.contracts.bus import BusPlugin
from asys_bench.contracts.run_files import ARCHIVE_DIR
from asys_bench.registry import KINDS, PluginError, registry

# `asys-bench doctor`: what this machine has, what is missing, and the fix. It changes nothing.

Level = Literal["ok", "note", "missing"]


@dataclass(frozen=True)
class Check:
    """One finding. `missing` means that a default configuration cannot run."""

    name: str
    level: Level
    found: str
    fix: str = ""


def diagnose() -> list[Check]:
    """Every check, in the order a newcomer should read them."""
    return [
        _python(),
        _torch(),
        _kernel_features(),
        _cores(),
        _threads(),
        _shared_memory(),
        _archives(),
        *_compiled(),
        *(_optional(*row) for row in _OPTIONAL),
        *_plugins(),
    ]


_OPTIONAL = (
    ("stable_baselines3", "rl", "host `ppo`"),
    ("tensorboard", "tensorboard", "TensorBoard files"),
    ("numba", "numba", "backend numba_ring"),
    ("prometheus_client", "prometheus", "monitor `prometheus`"),
    ("sae_lens", "interop", "loading checkpoints in SAELens"),
    ("datasets", "interop", "opening the archive with Hugging Face datasets"),
)


def _python() -> Check:
    return Check("python", "ok", f"{platform.python_version()} at {sys.executable}")


def _torch() -> Check:
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    return Check("torch", "ok", f"{torch.__version__}, {device}")


def _kernel_features() -> Check:
    absent = [name for name in ("memfd_create", "pidfd_open") if not hasattr(os, name)]
    if absent or sys.platform != "linux":
        return Check(
            "kernel",
            "missing",
            f"{platform.system()} without {', '.join(absent)}",
            "use Linux >= 5.4",
        )
    return Check("kernel", "ok", f"{platform.release()}, memfd and pidfd")


def _cores() -> Check:
    usable = len(os.sched_getaffinity(0))
    if usable < 2:
        return Check(
            "cores",
            "note",
            f"{usable} usable",
            "workers will take time from the host; give it two cores",
        )
    return Check("cores", "ok", f"{usable} usable of {os.cpu_count()}")


def _threads() -> Check:
    """Torch's threads beside the workers that the shipped defaults start."""
    import torch

    from asys_bench.config import load_config
    from asys_bench.placement.needs import crowding, needs_of, room_for_host

    threads, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
    needs = needs_of(load_config("profile_consumer.yaml", env={}).config, threads)
    problem = crowding(needs, cores)
    if problem is None:
        return Check("threads", "ok", f"torch takes {threads} in the host, of {cores} cores")
    room = room_for_host(needs, cores)
    return Check(
        "threads",
        "note",
        problem,
        f"torch.set_num_threads({room}) before observe(), or OMP_NUM_THREADS={room}; asys-run: "
        f"--set resources.host_threads={room}",
    )


def _shared_memory() -> Check:
    try:
        stat = os.statvfs("/dev/shm")
    except OSError as error:
        return Check(
            "/dev/shm", "note", str(error), "mount a tmpfs there (only named segments need it)"
        )
    free_mib = stat.f_bavail * stat.f_frsize >> 20
    if free_mib < 256:
        return Check("/dev/shm", "note", f"{free_mib} MiB free", "docker: run with --shm-size=1g")
    return Check("/dev/shm", "ok", f"{free_mib} MiB free")


def _archives() -> Check:
    """The disk under the runs of the shipped defaults, and what budgets have deleted there."""
    from asys_bench.config import load_config
    from asys_bench.sinks.archive.deletions import Deleted, read_deletions, reason_text

    config = load_config("profile_consumer.yaml", env={}).config
    folder = Path(config.run.dir).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free_gib = shutil.disk_usage(there).free / (1 << 30)
    runs = [path for path in folder.glob("*") if (path / ARCHIVE_DIR).is_dir()]
    gone = Deleted.by_reason(one for run in runs for one in read_deletions(run).values())
    found = f"{free_gib:.1f} GiB free for {folder.name}/"
    budgets = [sink.options.get("max_gib") for sink in config.sinks.values()]
    for budget in filter(None, budgets):
        found += f"; profile_consumer and observe() keep at most {budget:g} GiB of archive a run"
    for reason, of in gone.items():
        found += (
            f"; {of.shards:,} shards ({of.rows:,} rows) were deleted {reason_text(reason)} in the runs "
            "there"
        )
    if free_gib < 2:
        return Check(
            "disk", "note", found, "lower sinks.archive.options.max_gib, or set run.dir elsewhere"
        )
    return Check("disk", "ok", found)


def _compiled() -> list[Check]:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    built = find_spec("asys_bench.backends.cpp_spmc._spmc") is not None
    checks = [
        Check("c++ bus", "ok", "compiled module loads")
        if built
        else Check(
            "c++ bus",
            "note",
            "not compiled: this is a pure-Python install",
            "install g++ and cmake, then `pip install --force-reinstall --no-deps asys-i`; "
            "ASYS_REQUIRE_CPP=1 turns a failed build into an error",
        )
    ]
    if compiler is None and not built:
        checks.append(Check("compiler", "note", "none on PATH", "apt-get install g++ (or clang)"))
    elif compiler is not None:
        checks.append(Check("compiler", "ok", Path(compiler).name))
    return checks


def _optional(module: str, extra: str, gives: str) -> Check:
    if find_spec(module) is None:
        return Check(module, "note", f"not installed ({gives})", f"pip install 'asys-i[{extra}]'")
    return Check(module, "ok", gives)


def _plugins() -> list[Check]:
    checks = []
    for kind in KINDS:
        known = registry(kind)
        failures = known.failures()
        for name in known.names():
            label = f"{kind} {name}"
            if name in failures:
                checks.append(
                    Check(label, "missing", failures[name], "reinstall the package it is from")
                )
            elif kind == "backend":
                checks.append(_backend(label, name))
    return checks


def _backend(label: str, name: str) -> Check:
    try:
        reason = registry("backend").get(name, BusPlugin).unavailable()
    except PluginError as error:
        return Check(label, "missing", str(error))
    return Check(label, "ok", "can run here") if reason is None else Check(label, "note", reason)


def print_report(console: Console) -> int:
    """Print every check; 1 when something that the defaults need is missing, else 0."""
    colours = {"ok": "green", "note": "yellow", "missing": "red"}
    table = Table("", "check", "found", "fix", box=None, pad_edge=False)
    checks = diagnose()
    for check in checks:
        colour = colours[check.level]
        # Text, not markup: a fix such as asys-i[rl] has brackets of its own.
        cells = (Text(check.level, colour), check.name, Text(check.found), Text(check.fix))
        table.add_row(*cells)
    console.print(table)
    return 1 if any(check.level == "missing" for check in checks) else 0


EXAMPLES = (("asys-bench doctor", "every check, with a fix where one is needed"),)


def add(parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def main(arguments: argparse.Namespace, console: Console) -> int:
    """1 when something that the defaults need is missing."""
    return print_report(console)
