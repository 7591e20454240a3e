"""The surroundings of the host under test: environment, private mounts; and what it left in them."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path

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
