"""`params` of a chaos case: which fault, on whom, how often, how hard."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from asys_bench.contracts.scenario import ScenarioOptions

FaultName = Literal[
    "none",
    "kill",
    "stop",
    "storm",
    "any_signal",
    "freeze",
    "slow",
    "disk_full",
    "shm_full",
    "oom",
    "clock_step",
    "emfile",
    "torn_file",
    "host_crash",
]
FAULT_NAMES: tuple[str, ...] = get_args(FaultName)


class ChaosOptions(ScenarioOptions):
    """`params` of a chaos case."""

    fault: FaultName = Field(description="which fault; `none` for a reference")
    worker: str = Field(
        default="archive-0",
        description="slot of the process that is struck: a worker or `watchdog`; `everyone` but "
        "the host; `anyone`, one of those by chance each time (kill, stop)",
    )
    group: str = Field(default="archive", description="the consumer group that must go on")
    archive_group: str = Field(
        default="archive", description="the group whose files are counted; none of that name: none"
    )
    faults: int = Field(default=1, ge=1, le=1000, description="how often it strikes in a round")
    calm_s: float = Field(
        default=0.5,
        ge=0,
        le=60,
        description="mean calm before each strike; 0.5 to 1.5 of it, in storms nearly 0 to 2",
    )
    hold_s: float = Field(
        default=1.0,
        ge=0,
        le=300,
        description="how long a fault that lasts does so; freeze: 0.1 to 1.9 of it",
    )
    await_recovery: bool = Field(
        default=True, description="wait for recovery before the next strike (and measure it)"
    )
    patience_s: float = Field(default=30, gt=0, le=300, description="longest wait for recovery")
    keep: str | None = Field(
        default=None, description="a folder that the round's run directory is left in"
    )
    settle_s: float = Field(default=0.5, ge=0, le=60, description="calm after the last recovery")
    record_steps: bool = Field(
        default=True, description="time each host step (`step_ms`); it keeps 16 bytes of each"
    )
    check_weights: bool = Field(
        default=True,
        description="train the same host again without any observer and compare its weights",
    )
    slow_ratio: float = Field(
        default=0.9, gt=0, lt=1, description="slow: share of the time that the worker stands still"
    )
    disk_mib: int = Field(default=64, ge=8, le=4096, description="disk_full: size of the disk")
    memory_mib: float = Field(
        default=1.0, gt=0, le=65536, description="oom: what the worker may add to its memory"
    )
    clock_s: tuple[Annotated[float, Field(ge=-4e9, le=4e9)], ...] = Field(
        default=(-86400.0, 86400.0, 6.3e8, -2e9),
        min_length=1,
        description="clock_step: how far the wall clock is off after each strike, in seconds; "
        "a day behind, a day ahead, 20 years ahead, before 1970",
    )
    files: int = Field(default=3, ge=0, le=1024, description="emfile: highest descriptor allowed")
    torn_bytes: int = Field(
        default=1000, ge=1, description="torn_file: bytes cut off the end of the newest file"
    )
    torn_glob: str = Field(
        default="archive/*/[!.]*.arrows", description="torn_file: which files of the run"
    )
