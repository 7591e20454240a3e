"""Faults by signal: kill, stop, slow; and storms, which strike whatever process is there."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import threading
import time
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from asys_bench.harness.faults.disk import DiskFull, NoDescriptors, ShmFull, TornFile
from asys_bench.harness.faults.fault import ChaosOptions, Fault, Stage
from asys_bench.harness.faults.observed import ObservedRun
from asys_bench.system.liveness import ProcessHandle

SLICE_S = 0.05
"""One on-off cycle of a slowed worker."""


class NoFault(Fault):
    name, summary, replaces = "none", "nothing happens: the reference", False


class Kill(Fault):
    name, summary = "kill", "SIGKILL"

    def inject(self, run: ObservedRun) -> None:
        self.strike(run, signal.SIGKILL)


class Stop(Fault):
    """The watchdog sees no heartbeat, kills and replaces; nobody sends SIGCONT."""

    name, summary = "stop", "SIGSTOP: alive, silent, holding its claims"

    def inject(self, run: ObservedRun) -> None:
        self.strike(run, signal.SIGSTOP)


class _OfAnybody(Fault):
    """Strikes whatever processes there are but the host, however soon after the last strike."""

    def calm_s(self) -> float:
        return self.options.calm_s * self.random.uniform(0.02, 1.98)

    def inject(self, run: ObservedRun) -> None:
        self._lives = {name: run.life(name) for name in run.others()}
        self.send(run, run.processes())

    @abstractmethod
    def send(self, run: ObservedRun, pids: list[int]) -> None:
        """Send signals to some of `pids`."""


class Storm(_OfAnybody):
    """Everything at once: watchdog, fork server, resource tracker, workers, monitors."""

    name, summary = "storm", "SIGKILL or SIGSTOP, by chance, of every process but the host"

    def send(self, run: ObservedRun, pids: list[int]) -> None:
        number = self.random.choice((signal.SIGKILL, signal.SIGSTOP))
        for pid in pids:
            run.send_to(pid, number)


class AnySignal(_OfAnybody):
    """What a person, a shell, a service manager or a bug may send."""

    name, summary = "any_signal", "one to three processes, any but the host, get a signal each"
    signals: ClassVar[tuple[signal.Signals, ...]] = (
        signal.SIGKILL,
        signal.SIGSTOP,
        signal.SIGTERM,
        signal.SIGSEGV,
        signal.SIGABRT,
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGQUIT,
    )

    def send(self, run: ObservedRun, pids: list[int]) -> None:
        for pid in self.random.sample(pids, min(self.random.randint(1, 3), len(pids))):
            run.send_to(pid, self.random.choice(self.signals))


class Freeze(_OfAnybody):
    """A machine or container that stands still while the host goes on, and then does not."""

    name, summary = "freeze", "SIGSTOP of every process but the host, and SIGCONT after a while"
    lasts: ClassVar[bool] = True

    def hold_s(self) -> float:
        return self.options.hold_s * self.random.uniform(0.1, 1.9)

    def send(self, run: ObservedRun, pids: list[int]) -> None:
        self._frozen = pids
        for pid in pids:
            run.send_to(pid, signal.SIGSTOP)

    def lift(self, run: ObservedRun) -> None:
        for pid in self._frozen:
            run.send_to(pid, signal.SIGCONT)

    def recovered(self, run: ObservedRun) -> bool:
        """Nobody needs a successor, unless it stood still for longer than its timeout."""
        return True


class Slow(Fault):
    """What a swapping or throttled machine does to a worker: it must not be taken for a hang."""

    name, summary = "slow", "SIGSTOP and SIGCONT in turn: a worker that gets little time"
    lasts: ClassVar[bool] = True
    replaces: ClassVar[bool] = False

    def inject(self, run: ObservedRun) -> None:
        self._end = threading.Event()
        handles = [ProcessHandle(run.pid(name)) for name in self.victims(run)]
        self._thread = threading.Thread(target=self._alternate, args=(handles,), daemon=True)
        self._thread.start()

    def _alternate(self, handles: list[ProcessHandle]) -> None:
        still_s = SLICE_S * self.options.slow_ratio
        while not self._end.is_set():
            for handle in handles:
                handle.kill(signal.SIGSTOP)
            self._end.wait(still_s)
            for handle in handles:
                handle.kill(signal.SIGCONT)
            time.sleep(SLICE_S - still_s)
        for handle in handles:
            handle.close()

    def lift(self, run: ObservedRun) -> None:
        self._end.set()
        self._thread.join()


class HostCrash(Fault):
    """Workers drain, write and leave within five seconds; nothing stays behind.

    With `worker: everyone` all others are stopped (SIGSTOP) first, and must leave all the same.
    """

    name, summary = "host_crash", "SIGKILL of the host process"
    replaces: ClassVar[bool] = False
    host_survives: ClassVar[bool] = False

    def inject(self, run: ObservedRun) -> None:
        if self.options.worker == "everyone":
            run.send_all(signal.SIGSTOP)
        run.process.kill()


# A step of the wall clock (NTP, a resumed virtual machine), for the run under test alone.
#
# The machine's own clock belongs to others. A library that every process of the run preloads stands in for
# `clock_gettime`, `gettimeofday`, `time` and `timespec_get`, so that C and C++ below Python see the step too;
# what it adds to CLOCK_REALTIME lies in a file of eight bytes that all of them map. Monotonic clocks do not
# step, here as in life. A wait until a time of the wall clock is left as it is: it would last as long as the
# step is large, and be seen.

VARIABLE = "ASYS_CHAOS_CLOCK"
COMPILERS = ("cc", "gcc", "clang", "g++")
SHIM = f"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const int64_t none = 0;
static const volatile int64_t *added_ns = &none;

__attribute__((constructor)) static void begin(void) {{
  const char *path = getenv("{VARIABLE}");
  const int fd = path != NULL ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (fd < 0) return;
  void *cell = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);
  if (cell != MAP_FAILED) added_ns = (const volatile int64_t *)cell;
  close(fd);
}}

int clock_gettime(clockid_t clock, struct timespec *now) {{
  typedef int (*call)(clockid_t, struct timespec *);
  static call own = NULL;
  if (own == NULL) own = (call)dlsym(RTLD_NEXT, "clock_gettime");
  const int failed = own != NULL ? own(clock, now) : (int)syscall(SYS_clock_gettime, clock, now);
  if (failed || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE)) return failed;
  const int64_t second = 1000000000, added = *added_ns, rest = now->tv_nsec + added % second;
  now->tv_sec += added / second + (rest >= second) - (rest < 0);
  now->tv_nsec = rest + (rest < 0 ? second : 0) - (rest >= second ? second : 0);
  return 0;
}}

int gettimeofday(struct timeval *now, void *zone) {{
  (void)zone;
  struct timespec found;
  if (clock_gettime(CLOCK_REALTIME, &found) != 0) return -1;
  now->tv_sec = found.tv_sec;
  now->tv_usec = found.tv_nsec / 1000;
  return 0;
}}

int timespec_get(struct timespec *now, int base) {{
  return base == TIME_UTC && clock_gettime(CLOCK_REALTIME, now) == 0 ? base : 0;
}}

time_t time(time_t *now) {{
  struct timespec found;
  const time_t second = clock_gettime(CLOCK_REALTIME, &found) == 0 ? found.tv_sec : (time_t)-1;
  if (now != NULL) *now = second;
  return second;
}}
"""


class ClockStep(Fault):
    """From one wrong time to the next: nothing may restart, stall or lose count."""

    name, summary = "clock_step", "the wall clock jumps; monotonic clocks go on"
    replaces: ClassVar[bool] = False

    @classmethod
    def unavailable(cls, options: ChaosOptions) -> str | None:
        if _compiler() is None:
            return f"it preloads a small library, which takes a C compiler: one of {', '.join(COMPILERS)}"
        return None

    def prepare(self, stage: Stage) -> None:
        folder = stage.scratch / "clock"
        folder.mkdir()
        compiler, library = _compiler(), folder / "wall_clock.so"
        assert compiler is not None
        subprocess.run(
            [compiler, "-x", "c", "-O2", "-shared", "-fPIC", "-o", str(library), "-", "-ldl"],
            input=SHIM.encode(),
            check=True,
        )
        self._cell = folder / "added_ns"
        self._cell.write_bytes(bytes(8))
        self._steps = 0
        preloaded = os.environ.get("LD_PRELOAD", "").split()
        stage.environment |= {
            VARIABLE: str(self._cell),
            "LD_PRELOAD": " ".join([*preloaded, str(library)]),  # a sanitizer wants to be the first
        }

    def inject(self, run: ObservedRun) -> None:
        added_s = self.options.clock_s[self._steps % len(self.options.clock_s)]
        self._steps += 1
        with self._cell.open("r+b") as file:
            file.write(struct.pack("<q", int(added_s * 1e9)))


def _compiler() -> str | None:
    return next((found for name in COMPILERS if (found := shutil.which(name))), None)


class OutOfMemory(Fault):
    """The worker is moved to a cgroup (v2, or v1 where that is mounted) whose memory limit is used up."""

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


FAULTS: Mapping[str, type[Fault]] = {
    fault.name: fault
    for fault in (
        NoFault,
        Kill,
        Stop,
        Storm,
        AnySignal,
        Freeze,
        Slow,
        DiskFull,
        ShmFull,
        OutOfMemory,
        ClockStep,
        NoDescriptors,
        TornFile,
        HostCrash,
    )
}
"""`options.FaultName` names the same."""
