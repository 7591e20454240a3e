"""`run`: what a run is called, where it writes and when it gives up waiting."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints

from asys_bench.config.sections.section import Integer, Number, Section
from asys_bench.system.files.durability import Fsync


class RunProfile(StrEnum):
    """What machine the configuration is meant for."""

    HPC = "HPC"
    CONSUMER = "CONSUMER"


class RunConfig(Section):
    """The run itself."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")] = Field(
        default="run",
        description="name of the run; its folder is `<dir>/<timestamp>-<name>/`",
    )
    dir: Path = Field(
        default=Path("runs"),
        description="folder under which each run makes its own, never over an earlier one; "
        "relative to the working directory",
    )
    seed: Integer = Field(
        default=0,
        ge=0,
        lt=1 << 32,
        description="seed of the host and, through it, of every worker and sampler",
    )
    fsync: Fsync = Field(
        default=Fsync.CHECKPOINT,
        description="what must survive a power cut (a killed process never needs it): `never`; "
        "`checkpoint` waits for the device once per SAE checkpoint and archive shard; `always` also "
        "once per record batch of the archive, at the cost of its throughput",
    )
    drain_timeout_s: Number = Field(
        default=8.0,
        gt=0,
        le=3600,
        description="time that workers get to drain, write and exit once the host has ended, "
        "in seconds; then they are killed",
    )
