"""The counter page: the account and the name table in one small memfd, readable by every process.

The owner is the only writer. Two copies of the cells lie side by side; a write fills the copy that
`version` does *not* select and then bumps `version` (one aligned 8-byte store). So an owner killed
at any byte leaves the previous copy whole, and the identity holds over what is read after its death.
A live reader copies, then checks that `version` did not move; it retries if it did. (A reader that
loses that race on a weakly ordered CPU is caught by the stamp at both ends of the copy.)

Page: 4 x u64 {magic, version, n_names, -} | copy 0 @ 4 KiB | copy 1 @ 8 KiB | group names | names.
Cells of a copy: stamp, n_groups, produced, produced_bytes, 4 x dropped, then 6 per group, stamp.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
import sys
import tempfile
from array import array

from asys_bench.contracts.bus import BusAccount, BusError, DropReason, GroupAccount
from asys_bench.system.descriptor import Descriptor, map_shared
from asys_bench.system.files.atomic import private_memfd

MAGIC = 0x3150_5359_5341
MAX_GROUPS = 64
MAX_NAMES = 4096
MAX_NAME_BYTES = 200
N_GROUPS, PRODUCED, PRODUCED_BYTES, DROPPED = 1, 2, 3, 4
REASONS = tuple(DropReason)
REASON_INDEX = {reason: index for index, reason in enumerate(REASONS)}
FIRST_GROUP = DROPPED + len(REASONS)
DELIVERED, LOST, DEAD, REDELIVERED, READY, MISSED = range(6)
GROUP_CELLS = 6

_COPIES = (4096, 8192)
_SLOT = 256
_GROUP_NAMES = 12288
_NAMES = _GROUP_NAMES + MAX_GROUPS * _SLOT
PAGE_BYTES = _NAMES + MAX_NAMES * _SLOT
_LENGTH = struct.Struct("<H")


def account_of(cells: array[int], groups: list[str]) -> BusAccount:
    """The cells as the contract's account."""
    accounts = []
    for index, name in enumerate(groups):
        base = FIRST_GROUP + index * GROUP_CELLS
        delivered, lost, dead, redelivered, ready, missed = cells[base : base + GROUP_CELLS]
        accounts.append(GroupAccount(name, delivered, lost, dead, redelivered, ready, missed))
    dropped = {reason.value: cells[DROPPED + i] for i, reason in enumerate(REASONS)}
    return BusAccount(cells[PRODUCED], dropped, cells[PRODUCED_BYTES], tuple(accounts))


class CounterWriter:
    """The owner's side: `cells` are changed freely (under the bus lock), then `publish`ed."""

    def __init__(self) -> None:
        fd, self._map = _create_page()
        self._reader = Descriptor(fd)
        self._words = memoryview(self._map).cast("B").cast("q")
        self._words[0] = MAGIC
        self.cells: array[int] = array("q", bytes(8 * (FIRST_GROUP + 1)))
        self.groups: list[str] = []
        self._version = 0
        self._closed = False
        self._targets: tuple[memoryview, memoryview]
        self._aim()

    @property
    def reader_fd(self) -> int:
        """For handles. Raises OSError: this process has closed it."""
        return self._reader.number

    def add_group(self, name: str) -> int:
        """Append a group with zero counts (not yet published); returns its first cell's index.

        Raises:
            BusError: too many groups, or the name is too long.
        """
        if len(self.groups) >= MAX_GROUPS:
            raise BusError(f"the bus holds at most {MAX_GROUPS} groups; it has {self.groups}")
        _write_name(self._map, _GROUP_NAMES + len(self.groups) * _SLOT, name)
        base = len(self.cells) - 1
        self.cells[base] = 0  # what was the closing stamp is now the group's first counter
        self.cells[base] = 0  # was the closing stamp
        self.cells.extend([0] * GROUP_CELLS)
        self.groups.append(name)
        self.cells[N_GROUPS] = len(self.groups)
        self._aim()
        return base

    def add_name(self, name: str) -> int:
        """Append an interned name; returns its id.

        Raises:
            BusError: the table is full or the name is too long.
        """
        index = self._words[2]
        if index >= MAX_NAMES:
            raise BusError(f"the name table is full ({MAX_NAMES} names)")
        _write_name(self._map, _NAMES + index * _SLOT, name)
        self._words[2] = index + 1
        return index

    def publish(self) -> None:
        """Make the cells visible to every reader at once (nothing once closed)."""
        if self._closed:
            return
        version = self._version + 1
        cells = self.cells
        cells[0] = cells[-1] = version
        self._targets[version & 1][:] = cells
        self._words[1] = version
        self._version = version

    def close(self) -> None:
        """Unmap and close; readers keep what was published."""
        self._closed = True
        for view in (*self._targets, self._words):
            view.release()
        self._map.close()
        self._reader.close()

    def _aim(self) -> None:
        length = len(self.cells)
        first, second = (self._words[at // 8 : at // 8 + length] for at in _COPIES)
        self._targets = (first, second)


class CounterReader:
    """Any process's read-only side."""

    def __init__(self, fd: int) -> None:
        """Map the page behind `fd` (not consumed).

        Raises:
            BusError: it is not a counter page.
        """
        try:
            if os.fstat(fd).st_size != PAGE_BYTES:
                raise BusError("the handle's descriptor is not an mp_queue counter page")
            self._map = map_shared(fd, PAGE_BYTES, writable=False)
        except OSError as error:
            raise BusError(f"the handle's descriptor {fd} cannot be mapped: {error}") from error
        self._names: list[str] = []
        if self._word(0) != MAGIC:
            self._map.close()
            raise BusError("the handle's descriptor is not an mp_queue counter page")

    def account(self) -> BusAccount:
        """A consistent snapshot, also when the owner died while writing.

        Raises:
            BusError: the page is damaged.
        """
        for _ in range(100_000):
            version = self._word(1)
            at = _COPIES[version & 1]
            count = self._word(at // 8 + N_GROUPS)
            if not 0 <= count <= MAX_GROUPS:
                continue
            length = FIRST_GROUP + count * GROUP_CELLS + 1
            cells = array("q", self._map[at : at + 8 * length])
            if self._word(1) == version == cells[0] == cells[-1]:
                names = [_read_name(self._map, _GROUP_NAMES + i * _SLOT) for i in range(count)]
                return account_of(cells, names)
        raise BusError("the counter page never settled; it is damaged")

    def name_of(self, name_id: int) -> str:
        """The interned name. Raises BusError when there is none."""
        known = self._names
        if not 0 <= name_id < len(known):
            for index in range(len(known), self._word(2)):
                known.append(_read_name(self._map, _NAMES + index * _SLOT))
            if not 0 <= name_id < len(known):
                raise BusError(f"no interned name {name_id}; the bus has {len(known)}")
        return known[name_id]

    def close(self) -> None:
        self._map.close()

    def _word(self, index: int) -> int:
        return int.from_bytes(self._map[8 * index : 8 * index + 8], "little", signed=True)


def check_name(name: str) -> bytes:
    """`name` as UTF-8. Raises BusError when it is empty or too long."""
    raw = name.encode()
    if not 0 < len(raw) <= MAX_NAME_BYTES:
        raise BusError(f"a name has 1..{MAX_NAME_BYTES} bytes of UTF-8, got {len(raw)}: {name!r}")
    return raw


def _create_page() -> tuple[int, mmap.mmap]:
    """(read-only descriptor for handles, writable mapping)."""
    if sys.platform != "linux":
        with tempfile.TemporaryFile() as file:  # unlinked at once
            os.truncate(file.fileno(), PAGE_BYTES)
            return os.dup(file.fileno()), mmap.mmap(file.fileno(), PAGE_BYTES)
    fd = private_memfd("asys-mp-queue", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(fd, 0, PAGE_BYTES)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        page = map_shared(fd, PAGE_BYTES)
        with contextlib.suppress(FileNotFoundError, PermissionError):  # no /proc in this sandbox
            return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC), page
        return os.dup(fd), page
    finally:
        os.close(fd)


def _write_name(page: mmap.mmap, at: int, name: str) -> None:
    raw = check_name(name)
    page[at + 2 : at + 2 + len(raw)] = raw
    page[at : at + 2] = _LENGTH.pack(len(raw))


def _read_name(page: mmap.mmap, at: int) -> str:
    (length,) = _LENGTH.unpack(page[at : at + 2])
    return page[at + 2 : at + 2 + min(length, MAX_NAME_BYTES)].decode(errors="replace")
