"""What a fault is. Every fault

- says before anything starts whether this machine can have it (`unavailable`), with the fix;
- prepares the host's surroundings (`prepare`): environment, mounts; undone by the stage;
- strikes (`inject`) and, where it lasts, ends (`lift`), as often as the case says;
- knows when the run is over it (`recovered`), apart from packets flowing again;
- touches only processes and files of the run under test.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import time
from abc import ABC
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from asys_bench.contracts.scenario import ScenarioOptions
from asys_bench.contracts.stats import WorkerState
from asys_bench.harness.faults.observed import ObservedRun

# `params` of a chaos case: which fault, on whom, how often, how hard.

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


# The surroundings of the host under test: environment, private mounts; and what it left in them.

CLONE_NEWNS = 0x20000
MS_REC, MS_PRIVATE, MS_NOSUID, MS_NODEV = 0x4000, 0x40000, 2, 4
MNT_DETACH = 2
CAP_SYS_ADMIN = 21
SHARED_MEMORY = "/dev/shm"
OF_OURS = ("asys", "sem.mp-", "psm_")
"""How names begin that a bus of ours, or Python's multiprocessing, may leave there."""


class Stage:
    """What a fault may arrange before the host starts. `runs` is where its run directory will be,
    `terminal` what it and its children print, in a folder for temporary files of their own."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.runs, self._temporary = scratch / "runs", scratch / "tmp"
        for folder in (self.runs, self._temporary):
            folder.mkdir(exist_ok=True)
        self.terminal = scratch / "terminal.txt"
        self.environment: dict[str, str] = {
            "TMPDIR": str(self._temporary),
            # torch's own cache, which every optimizer makes, and in TMPDIR unless told otherwise.
            "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
        }
        self._shared_before = _shared_names()
        self._private = False
        self._mounted: list[Path] = []

    def mount_memory(self, place: Path, options: str) -> None:
        """A tmpfs at `place` that only this process and its children see.

        Raises:
            OSError: the kernel refused (`cannot_mount` says so beforehand).
        """
        if not self._private:
            _call("unshare", CLONE_NEWNS)
            _call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
            self._private = True
        _call(
            "mount", b"tmpfs", os.fsencode(place), b"tmpfs", MS_NOSUID | MS_NODEV, options.encode()
        )
        self._mounted.append(place)

    def left_behind(self, patience_s: float) -> list[str]:
        """Names in TMPDIR, and in /dev/shm, that are there for this long: a neighbour's come and go."""
        deadline = time.monotonic() + patience_s
        while True:
            shared = sorted(_shared_names() - self._shared_before)
            left = [*sorted(os.listdir(self._temporary)), *shared]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.05)

    def clear(self) -> None:
        """Take the mounts down; their contents are gone."""
        while self._mounted:
            _call("umount2", os.fsencode(self._mounted.pop()), MNT_DETACH)


def _shared_names() -> set[str]:
    return {name for name in os.listdir(SHARED_MEMORY) if name.startswith(OF_OURS)}


def cannot_mount() -> str | None:
    """Why `mount_memory` would fail here, with the fix."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        capable = int(lines["CapEff"].strip(), 16) >> CAP_SYS_ADMIN & 1
    except (OSError, KeyError, ValueError):
        capable = 0
    if capable:
        return None
    return (
        "it mounts a small disk in memory, which takes CAP_SYS_ADMIN: run it as root, or in a "
        "container with --cap-add SYS_ADMIN"
    )


def _call(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


class Fault(ABC):
    """One kind of fault; an instance per round."""

    name: ClassVar[str]
    summary: ClassVar[str]
    lasts: ClassVar[bool] = False
    """It goes on until it is lifted; recovery counts from there."""
    replaces: ClassVar[bool] = True
    """A worker dies of it, so a successor has to come."""
    host_survives: ClassVar[bool] = True

    def __init__(self, options: ChaosOptions, seed: int) -> None:
        self.options = options
        self.random = random.Random(seed)
        self._lives: dict[str, tuple[int, int]] = {}

    def calm_s(self) -> float:
        """How long nothing happens before the next strike."""
        return self.options.calm_s * self.random.uniform(0.5, 1.5)

    def hold_s(self) -> float:
        """How long a strike that lasts does so."""
        return self.options.hold_s

    @classmethod
    def unavailable(cls, options: ChaosOptions) -> str | None:
        """Why this machine cannot have it, with the fix; None when it can."""
        del options
        return None

    def prepare(self, stage: Stage) -> None:
        """Before the host starts."""

    def inject(self, run: ObservedRun) -> None:
        """Strike now."""

    def lift(self, run: ObservedRun) -> None:
        """End it. Called once per `inject` of a fault that lasts."""

    def excused_packets(self) -> int:
        """Packets that its damage to files explains; counted, never guessed."""
        return 0

    def victims(self, run: ObservedRun) -> Sequence[str]:
        """Slots of the processes it strikes."""
        return run.others() if self.options.worker == "everyone" else (self.options.worker,)

    def strike(self, run: ObservedRun, number: signal.Signals) -> None:
        """Send a signal to whom the case names."""
        if self.options.worker == "anyone":
            run.send_one(self.random.choice, number)
        else:
            self.remember(run)
            run.send(self.victims(run), number)

    def remember(self, run: ObservedRun) -> None:
        """Which incarnation is struck; call it right before."""
        self._lives = {name: run.life(name) for name in self.victims(run)}

    def recovered(self, run: ObservedRun) -> bool:
        """Every process that it struck has a successor that works."""
        if not self.replaces:
            return True
        for name, life in self._lives.items():
            slot = run.slot(name)
            if slot.state is not WorkerState.READY or run.life(name) == life:
                return False
        return True
