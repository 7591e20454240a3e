"""`run`: what a run is called, where it writes and when it gives up waiting."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from asys_bench.contracts.text_form import TextForm
from asys_bench.system.files.atomic import Fsync


class Section(BaseModel):
    """A frozen part of the configuration that refuses unknown keys, NaN and infinity."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_by_name=True
    )


def _refuse_bool(value: object) -> object:
    """YAML 1.1 reads `yes`, `no`, `on` and `off` as booleans, which pydantic would take as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("a number is needed, not a yes/no value")
    return value


def as_list(value: object) -> object:
    """One element may be written without the brackets of a list."""
    return [value] if isinstance(value, str | dict) else value


NotBool = BeforeValidator(_refuse_bool)
Integer = Annotated[int, NotBool]
Number = Annotated[float, NotBool]
Text = Annotated[str, StringConstraints(min_length=1, max_length=200)]
PluginName = Annotated[
    str,
    StringConstraints(min_length=1, max_length=64),
    TextForm(r"^[A-Za-z0-9_.-]+$", "a plugin's name", "use letters, digits, `_`, `.` and `-`"),
]
EntryName = Annotated[
    str,
    TextForm(
        r"^[a-z0-9_-]{1,48}$",
        "a short name in small letters",
        "use a to z, digits, `_` and `-`, at most 48 of them",
    ),
]
"""The name of a sink or monitor; it becomes part of process, file and metric names."""


_NAME_FIX = "use letters, digits, `_`, `.` and `-`, a letter or digit first, at most {}"
RunName = Annotated[
    str, TextForm(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", "a name for a folder", _NAME_FIX.format(64))
]
RunId = Annotated[
    str,
    TextForm(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,126}$", "a name for a folder", _NAME_FIX.format(127)),
]


class RunProfile(StrEnum):
    """What machine the configuration is meant for."""

    HPC = "HPC"
    CONSUMER = "CONSUMER"


class Resume(StrEnum):
    """What a start does with an earlier run of the same id."""

    NEVER = "never"
    AUTO = "auto"
    REQUIRE = "require"


class RunConfig(Section):
    """The run itself."""

    name: RunName = Field(
        default="run",
        description="name of the run; its folder is `<dir>/<timestamp>-<name>/`, or `<dir>/<id>/`",
    )
    dir: Path = Field(
        default=Path("runs"),
        description="folder under which each run makes its own, never over an earlier one; "
        "relative to the working directory",
    )
    resume: Resume = Field(
        default=Resume.NEVER,
        description="`never` begins a new run; `auto` goes on with the newest run of this id, and "
        "begins one where there is none or it is damaged; `require` goes on or fails. Where its folder is "
        "not here, it is brought from its copy (`storage.uri`)",
    )
    id: RunId | None = Field(
        default=None,
        description="what a run that goes on is found by, and the name of its folder; null: with "
        "`resume`, `<job>-<name>` under Slurm (SLURM_JOB_ID) or torchrun (TORCHELASTIC_RUN_ID), else "
        "`name`; without, the folder is `<timestamp>-<name>`",
    )
    seed: Integer = Field(
        default=0,
        ge=0,
        lt=1 << 32,
        description="seed of the host and, through it, of every worker and sampler",
    )
    eye: bool = Field(
        default=False,
        description="show the run in a browser while it goes on: `asys-run eye` as a process beside it "
        "(extra `eye`). Its address is one of the first lines. It ends with the run; where a page is open, "
        "20 s after the last one was closed, and an hour after the run at the latest",
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


class WatchdogConfig(Section):
    """`watchdog`: when a worker counts as dead, how it is started again, and how often."""

    enabled: bool = Field(
        default=True, description="restart workers that die or hang; false only counts them"
    )
    tick_s: Number = Field(
        default=0.2, ge=0.01, le=10, description="time between two looks at the workers, in seconds"
    )
    heartbeat_timeout_s: Number = Field(
        default=10.0,
        gt=0,
        description="a worker silent for this long is killed and restarted, in seconds",
    )
    startup_timeout_s: Number = Field(
        default=180.0,
        gt=0,
        description="a worker must beat for the first time within this, in seconds",
    )
    restart_limit: Integer = Field(
        default=5,
        ge=0,
        le=1000,
        description="restarts of one worker within `restart_window_s`; then it is quarantined",
    )
    restart_window_s: Number = Field(
        default=60.0, gt=0, description="window in which restarts are counted, in seconds"
    )
    backoff_initial_s: Number = Field(
        default=0.1,
        ge=0,
        description="wait before the first restart in seconds; doubled for each further one",
    )
    backoff_max_s: Number = Field(
        default=5.0, ge=0, description="longest wait before a restart, in seconds"
    )

    def backoff_s(self, restarts: int) -> float:
        """Wait before the next restart after `restarts` earlier ones, in seconds."""
        return min(self.backoff_max_s, self.backoff_initial_s * 2.0 ** min(restarts, 64))
