"""The surroundings of the host under test, and their removal: environment, private mounts."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

CLONE_NEWNS = 0x20000
MS_REC, MS_PRIVATE, MS_NOSUID, MS_NODEV = 0x4000, 0x40000, 2, 4
MNT_DETACH = 2
CAP_SYS_ADMIN = 21


class Stage:
    """What a fault may arrange before the host starts. `runs` is where its run directory will be."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.runs = scratch / "runs"
        self.runs.mkdir(exist_ok=True)
        self.environment: dict[str, str] = {}
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

    def clear(self) -> None:
        """Take the mounts down; their contents are gone."""
        while self._mounted:
            _call("umount2", os.fsencode(self._mounted.pop()), MNT_DETACH)


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
