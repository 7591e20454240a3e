"""The kernel's OOM killer, by a memory limit on one worker: cgroup v2, or v1 where that is mounted."""

from __future__ import annotations

import os
from pathlib import Path

from asys_bench.harness.faults.fault import Fault
from asys_bench.harness.faults.observed import ObservedRun
from asys_bench.harness.faults.options import ChaosOptions


class OutOfMemory(Fault):
    """The worker is moved to a group of its own that has no memory left to give."""

    name, summary = "oom", "the kernel's OOM killer ends the worker (cgroup memory limit)"

    @classmethod
    def unavailable(cls, options: ChaosOptions) -> str | None:
        parent = _memory_cgroup()
        if parent is not None:
            return None
        return (
            "it needs a memory cgroup that may be written: run it as root where the memory "
            "controller is delegated (cgroup v2: `memory` in cgroup.subtree_control)"
        )

    def inject(self, run: ObservedRun) -> None:
        parent = _memory_cgroup()
        if parent is None:
            raise RuntimeError("the memory cgroup is gone")
        self.remember(run)
        pid = run.pid(self.options.worker)
        group = parent / f"asys-chaos-{pid}"
        group.mkdir()
        run.at_end(group.rmdir)
        limit = str(int(self.options.memory_mib * (1 << 20)))
        if (group / "memory.max").exists():
            (group / "cgroup.procs").write_text(str(pid))
            (group / "memory.swap.max").write_text("0")
            (group / "memory.max").write_text(limit)
        else:
            (group / "memory.limit_in_bytes").write_text(limit)
            (group / "cgroup.procs").write_text(str(pid))


def _memory_cgroup() -> Path | None:
    """Where this process may make memory cgroups, or None."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            parent = Path("/sys/fs/cgroup") / path.lstrip("/")
            enabled = parent / "cgroup.subtree_control"
            usable = enabled.is_file() and "memory" in enabled.read_text().split()
        elif "memory" in controllers.split(","):
            parent = Path("/sys/fs/cgroup/memory") / path.lstrip("/")
            if not parent.is_dir():
                parent = Path("/sys/fs/cgroup/memory")  # the path is as seen from outside
            usable = True
        else:
            continue
        if usable and _can_make_groups(parent):
            return parent
    return None


def _can_make_groups(parent: Path) -> bool:
    probe = parent / f"asys-chaos-probe-{os.getpid()}"
    try:
        probe.mkdir()
        has_limit = any((probe / name).exists() for name in ("memory.max", "memory.limit_in_bytes"))
        probe.rmdir()
    except OSError:
        return False
    return has_limit
