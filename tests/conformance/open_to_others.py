"""What another user of the machine could read, write or connect to of some processes of ours."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

OURS = "asys"
SEALED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
UNSEALED = ("asys-launch",)
"""Read once, by a process that has just been started."""
LISTENS = "0A"


def session_of(leader: int) -> list[int]:
    """Processes of the session that `leader` leads: of a watchdog, all that it has started."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] not in (b"Z", b"X"):
            found.append(int(name))
    return found


def open_to_others(pids: Iterable[int], folders: Iterable[Path]) -> list[str]:
    """A line for each thing; none for what was inherited as standard input, output or error.

    folders: what lies there is ours.
    """
    found: set[str] = set()
    ours = tuple(os.path.realpath(folder) for folder in folders)
    for pid in pids:
        for number, link, status in _descriptors(pid):
            for what in _faults(pid, number, link, status, ours):
                found.add(f"{link} of {_command(pid)}: {what}")
    return sorted(found)


def _faults(
    pid: int, number: int, link: str, status: os.stat_result, ours: tuple[str, ...]
) -> Iterator[str]:
    mode = stat.S_IMODE(status.st_mode)
    name = link.removeprefix("/memfd:").partition(" ")[0]
    if link.startswith("/memfd:"):
        if not name.startswith(OURS):
            return
        if mode & 0o077 or status.st_uid != os.geteuid():
            yield f"mode {mode:o} of user {status.st_uid}"
        if not name.startswith(UNSEALED) and _seals(pid, number) & SEALED != SEALED:
            yield "its size is not sealed"
    elif link.startswith("socket:["):
        yield from _socket_faults(link[len("socket:[") : -1])
    elif link.startswith(ours) and mode & 0o077:
        yield f"mode {mode:o}"
    elif (
        link.startswith("/")
        and not link.startswith((*ours, "/dev/"))
        and number > 2
        and stat.S_ISREG(status.st_mode)
        and _is_writable(pid, number)
    ):
        yield "open for writing, and lies in no folder of ours"


def _socket_faults(inode: str) -> Iterator[str]:
    for line in _table("unix"):
        if line[6] != inode or len(line) < 8:
            continue
        path = line[7]
        if path.startswith("@"):
            if not path.startswith(f"@{OURS}-"):  # ours asks who it is (SO_PEERCRED)
                yield f"listens as {path}, to every user"
        elif os.path.exists(path):
            around = os.stat(os.path.dirname(path)).st_mode
            if around & 0o077 or os.stat(path).st_mode & 0o077:
                yield f"listens as {path}"
    for family in ("tcp", "tcp6"):
        for line in _table(family):
            if line[9] == inode and line[3] == LISTENS and not _is_loopback(line[1]):
                yield f"listens on {line[1]}"


def _is_loopback(address: str) -> bool:
    raw = bytes.fromhex(address.partition(":")[0])
    if len(raw) == 4:
        return raw[::-1][0] == 127
    words = struct.unpack("<4I", raw)
    return socket.inet_ntop(socket.AF_INET6, struct.pack(">4I", *words)) == "::1"


def _table(name: str) -> list[list[str]]:
    return [line.split() for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]


def _descriptors(pid: int) -> Iterator[tuple[int, str, os.stat_result]]:
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:  # it has ended
        return
    for number in numbers:
        path = f"/proc/{pid}/fd/{number}"
        try:
            yield int(number), os.readlink(path), os.stat(path)
        except OSError:
            continue


def _seals(pid: int, number: int) -> int:
    try:
        fd = os.open(f"/proc/{pid}/fd/{number}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # it was closed meanwhile
        return SEALED
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    finally:
        os.close(fd)


def _is_writable(pid: int, number: int) -> bool:
    try:
        lines = Path(f"/proc/{pid}/fdinfo/{number}").read_text().splitlines()
    except OSError:
        return False
    flags = next(int(line.split()[1], 8) for line in lines if line.startswith("flags:"))
    return flags & os.O_ACCMODE != os.O_RDONLY


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return str(pid)
    return next((w for w in words if "watchdog" in w or "multiprocessing" in w), "the host")
