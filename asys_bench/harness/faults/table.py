"""The faults by name."""

from __future__ import annotations

from collections.abc import Mapping

from asys_bench.harness.faults.clock import ClockStep
from asys_bench.harness.faults.crash import HostCrash
from asys_bench.harness.faults.disk import DiskFull, NoDescriptors, ShmFull, TornFile
from asys_bench.harness.faults.fault import Fault
from asys_bench.harness.faults.memory import OutOfMemory
from asys_bench.harness.faults.signals import (
    AnySignal,
    Freeze,
    Kill,
    NoFault,
    Slow,
    Stop,
    Storm,
)

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
