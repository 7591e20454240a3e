"""`resources`: how the machine is shared between the host and the workers."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from asys_bench.config.sections.run import Integer, NotBool, Section
from asys_bench.system.cpu_lists import CpuList


class NumaMode(StrEnum):
    """What is done about memory on machines with several NUMA nodes."""

    AUTO = "auto"
    NONE = "none"


class IoPriority(StrEnum):
    """I/O class of worker processes (ionice)."""

    NORMAL = "normal"
    LOW = "low"
    IDLE = "idle"


class CpuPriority(StrEnum):
    """Which CPU time the workers of sinks get."""

    NORMAL = "normal"
    IDLE = "idle"


class PinningMap(Section):
    """CPUs by hand. What is not named gets the usable CPUs that nobody was given."""

    host: CpuList | None = Field(
        default=None, description="CPUs of the host process, for example `0-7`"
    )
    services: CpuList | None = Field(
        default=None, description="CPUs of the watchdog and the monitors"
    )
    workers: dict[Annotated[str, StringConstraints(min_length=1, max_length=64)], CpuList] = Field(
        default_factory=dict,
        description="fnmatch glob over worker names (`trainer-0`, `archive-*`) -> CPUs; "
        "the last glob that matches wins",
    )


class ResourcesConfig(Section):
    """Threads, CPUs, memory nodes and priorities."""

    host_threads: Annotated[int, Field(ge=1, le=4096), NotBool] | None = Field(
        default=None,
        description="torch threads of the host process; null leaves them as they are, "
        "because their number can change the host's results",
    )
    worker_threads: Integer = Field(
        default=1, ge=1, le=4096, description="torch and OpenMP threads of each worker process"
    )
    worker_nice: Integer = Field(
        default=5,
        ge=0,
        le=19,
        description="niceness of worker processes (0 = as the host, 19 = weakest), "
        "so that the host wins when cores are short; with any they also interrupt nobody "
        "when they wake",
    )
    worker_cpu: CpuPriority = Field(
        default=CpuPriority.NORMAL,
        description="CPU time of trainers and archivers: a share by their niceness, or `idle` "
        "(SCHED_IDLE), only what nobody else on their CPUs wants: kernel threads and neighbours then "
        "run there and not on the host's CPUs, and on a loaded machine workers starve before the host "
        "does; needs pinning, which must keep workers off the host's CPUs",
    )
    worker_io: IoPriority = Field(
        default=IoPriority.NORMAL,
        description="I/O priority of worker processes: as every process, `low` (last of the "
        "best-effort class) or `idle` (only when nobody else wants the disk)",
    )
    pinning: Literal["none", "auto"] | PinningMap = Field(
        default="none",
        description="CPUs: `none` leaves it to the scheduler, but that workers keep off the CPU of a "
        "host that never sleeps while it leaves another, `auto` keeps workers off the host's "
        "cores, or a mapping {host, services, workers} of CPU lists such as `0-3,8`; "
        "`asys-run plan` shows the result",
    )
    numa: NumaMode = Field(
        default=NumaMode.AUTO,
        description="with pinning: `auto` puts the bus on the host's memory node and binds each "
        "worker's memory to the nodes of its CPUs, `none` leaves memory to the kernel",
    )
