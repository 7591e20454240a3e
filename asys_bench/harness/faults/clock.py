"""A step of the wall clock (NTP, a resumed virtual machine), for the run under test alone.

The machine's own clock belongs to others. A `sitecustomize` on the path of every Python process of
the run replaces `time.time` and `time.time_ns` before anything has imported them; what they add
lies in a file of eight bytes that all of them map. Monotonic clocks do not step, here as in life.
"""

from __future__ import annotations

import os
import struct
from typing import ClassVar

from asys_bench.harness.faults.fault import Fault
from asys_bench.harness.faults.observed import ObservedRun
from asys_bench.harness.faults.stage import Stage

VARIABLE = "ASYS_CHAOS_CLOCK"
SHIM = f"""\
import mmap, os, struct, time

_path = os.environ.get({VARIABLE!r})
if _path:
    with open(_path, "rb") as _file:
        _cell = mmap.mmap(_file.fileno(), 8, prot=mmap.PROT_READ)
    _time_ns, _unpack = time.time_ns, struct.unpack_from

    def time_ns():
        return _time_ns() + _unpack("<q", _cell)[0]

    def wall():
        return time_ns() / 1e9

    time.time_ns, time.time = time_ns, wall
"""


class ClockStep(Fault):
    """Forward, back, forward: nothing may restart, stall or lose count."""

    name, summary = "clock_step", "the wall clock jumps; monotonic clocks go on"
    replaces: ClassVar[bool] = False

    def prepare(self, stage: Stage) -> None:
        folder = stage.scratch / "clock"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(SHIM)
        self._cell = folder / "offset"
        self._cell.write_bytes(bytes(8))
        self._steps = 0
        path = os.environ.get("PYTHONPATH")
        stage.environment |= {
            VARIABLE: str(self._cell),
            "PYTHONPATH": os.pathsep.join([str(folder), *([path] if path else [])]),
        }

    def inject(self, run: ObservedRun) -> None:
        self._steps += 1
        sign = 1 if self._steps % 2 else -1
        with self._cell.open("r+b") as file:
            file.write(struct.pack("<q", int(sign * self.options.step_s * 1e9)))
