"""A step of the wall clock (NTP, a resumed virtual machine), for the run under test alone.

The machine's own clock belongs to others. A library that every process of the run preloads stands in for
`clock_gettime`, `gettimeofday`, `time` and `timespec_get`, so that C and C++ below Python see the step too;
what it adds to CLOCK_REALTIME lies in a file of eight bytes that all of them map. Monotonic clocks do not
step, here as in life. A wait until a time of the wall clock is left as it is: it would last as long as the
step is large, and be seen.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from typing import ClassVar

from asys_bench.harness.faults.fault import Fault
from asys_bench.harness.faults.observed import ObservedRun
from asys_bench.harness.faults.options import ChaosOptions
from asys_bench.harness.faults.stage import Stage

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
