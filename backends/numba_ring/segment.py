"""The mapped segment: made by the owner, attached by others, who trust nothing that they read in it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat

from asys_bench.backends.numba_ring import header, names_in_shm
from asys_bench.backends.numba_ring.core import layout as at
from asys_bench.backends.numba_ring.core.layout import Geometry
from asys_bench.backends.numba_ring.core.words import Words, ring_doorbell
from asys_bench.backends.numba_ring.liveness import ProcessWatch, identity_pid, own_identity
from asys_bench.backends.ring_client.client import SegmentRequest
from asys_bench.contracts.bus import BusError
from asys_bench.system.descriptor import Descriptor, address_of, map_shared
from asys_bench.system.files.atomic import private_memfd

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_POPULATE_READ, _POPULATE_WRITE = 22, 23  # madvise: fill the page tables


class Segment:
    """One mapping of the control part (read-write) and one of the arenas (read-only for consumers).

    It lives until the last view, producer or subscription that uses it is gone.
    """

    def __init__(self, fd: int, geometry: Geometry, *, owner: bool) -> None:
        """Takes over `fd`."""
        self._descriptor = Descriptor(fd)
        fd = self.fd
        self.geometry = geometry
        self.is_owner = owner
        self.name = ""
        self.source = 0
        self.initial_seq = 0
        self.checksum = False
        self.identity = own_identity()
        self._pid = os.getpid()
        self.owner_watch: ProcessWatch | None = None
        try:
            self._control = map_shared(fd, geometry.arena_offset)
            self._arena = map_shared(
                fd,
                geometry.segment_bytes - geometry.arena_offset,
                writable=owner,
                offset=geometry.arena_offset,
            )
        except OSError as error:
            raise _failure(
                f"cannot map {_mib(geometry.segment_bytes)}", error, _limits_hint(error)
            ) from error
        with contextlib.suppress(OSError):  # an older kernel: first touches fault instead
            self._control.madvise(_POPULATE_WRITE)
            self._arena.madvise(_POPULATE_WRITE if owner else _POPULATE_READ)
        self.base = address_of(self._control)
        self.words = Words(self.base)
        self.payloads = memoryview(self._arena).toreadonly()
        """All arenas, one after the other: what leases view."""

    @property
    def fd(self) -> int:
        """For passing on. Raises OSError: this process has closed it (the memory stays mapped)."""
        return self._descriptor.number

    def take_shard(self, shard: int) -> memoryview:
        """The writable arena of `shard`, of which this process is the one writer from now on.

        A shard is taken once: after its writer's death nobody knows which frames are live.

        Raises:
            BusError: no such shard, or it was taken.
        """
        shards, nbytes = self.geometry.shards, self.geometry.arena_bytes
        if not 0 <= shard < shards:
            raise BusError(f"no shard {shard}; this bus has shards 0..{shards - 1}")
        word = self.shard_address(shard) - self.base + at.SH_PRODUCER
        if not self.words.swap(word, 0, self.identity):
            raise BusError(
                f"the producer of shard {shard} was already handed out (to process "
                f"{identity_pid(self.words.load(word))}); one writes a shard, for as long as the bus "
                "lives"
            )
        if self.is_owner:
            return memoryview(self._arena)[shard * nbytes : (shard + 1) * nbytes]
        try:
            own = map_shared(self.fd, nbytes, offset=self.geometry.arena_offset + shard * nbytes)
        except OSError as error:
            self.words.store(word, 0)
            raise _failure(f"cannot map {_mib(nbytes)}", error, _limits_hint(error)) from error
        with contextlib.suppress(OSError):  # an older kernel: first touches fault instead
            own.madvise(_POPULATE_WRITE)
        return memoryview(own)

    def shard_address(self, shard: int) -> int:
        return self.base + at.SHARDS_OFFSET + shard * self.geometry.shard_stride

    @property
    def finished(self) -> bool:
        return self.words.load(at.HDR_STATE) == at.STATE_FINISHED

    @property
    def no_more(self) -> bool:
        """The owner said that it is done, or died: wseq will not move again."""
        watch = self.owner_watch
        return self.finished or (watch is not None and watch.dead())

    def refuse(self) -> None:
        """Refuse pushes from now on; one that began may still publish."""
        self.words.store(at.HDR_STATE, at.STATE_CLOSING)

    def finish(self) -> None:
        """Nothing will be published any more."""
        self.words.store(at.HDR_STATE, at.STATE_FINISHED)
        self.ring()

    def ring(self) -> None:
        ring_doorbell(self.base)

    def unlink(self) -> None:
        """Remove the name of a named segment; the memory lives until the last process lets go."""
        if self.name:
            with contextlib.suppress(OSError):
                names_in_shm.unlink(self.name, self.fd)
            self.name = ""

    def __del__(self) -> None:
        if self.is_owner and self._pid == os.getpid():
            self.unlink()
        self._descriptor.close()


def create(request: SegmentRequest) -> Segment:
    """A new segment, reserved, filled in, sealed (or published under its name).

    Raises:
        BusError: the numbers do not fit, or memory, descriptors or the name are not to be had.
    """
    numbers = (request.shards, request.slots, request.arena_bytes, request.max_payload)
    problem = at.geometry_error(*numbers)
    if problem is not None:
        raise BusError(f"cannot lay out the bus: {problem}")
    geometry = at.geometry(*numbers)
    available = _available_bytes()
    if geometry.segment_bytes > available:
        raise BusError(
            f"the bus needs {_mib(geometry.segment_bytes)} but {_mib(available)} of memory are "
            "available; lower bus.capacity_bytes, capacity_packets or shards"
        )
    where = str(names_in_shm.DIRECTORY) if request.name else "memory"
    try:
        fd = names_in_shm.open_unnamed() if request.name else _memfd()
    except OSError as error:
        hint = _limits_hint(error, "is /dev/shm mounted and writable?")
        raise _failure(f"cannot create a shared segment in {where}", error, hint) from error
    try:
        _reserve(fd, geometry.segment_bytes, where)
    except BaseException:
        os.close(fd)
        raise
    segment = Segment(fd, geometry, owner=True)
    segment.source = request.source
    segment.initial_seq = request.initial_seq
    segment.checksum = request.checksum
    header.initialise(segment.words, geometry, request, segment.identity)
    if request.name:
        names_in_shm.publish(request.name, segment.fd)
        segment.name = request.name
    else:
        fcntl.fcntl(segment.fd, fcntl.F_ADD_SEALS, _SEALS)
    return segment


def attach_fd(given: int) -> Segment:
    """The anonymous segment behind a file descriptor of this process, which stays the caller's.

    Raises:
        BusError: not a segment, not sealed, damaged or of another version.
    """
    try:
        fd = fcntl.fcntl(given, fcntl.F_DUPFD_CLOEXEC, 3)
    except OSError as error:
        hint = "pass the handle's descriptors to this process (pass_fds) and use their numbers here"
        raise _failure(f"file descriptor {given} cannot be attached", error, hint) from error
    try:
        status = os.fstat(fd)
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS) if stat.S_ISREG(status.st_mode) else 0
    except OSError:
        seals = 0
    if seals & _SEALS != _SEALS:
        os.close(fd)
        raise BusError(
            f"file descriptor {given} is not a sealed bus segment: whoever shrinks it would kill this "
            "process by SIGBUS"
        )
    return _attach(fd)


def attach_name(name: str) -> Segment:
    """The segment published under `name`. Errors as `attach_fd`."""
    segment = _attach(names_in_shm.open_named(name))
    segment.name = name
    return segment


def _attach(fd: int) -> Segment:
    try:
        words = header.read(fd)
        geometry = header.validate(words, os.fstat(fd).st_size)
    except BaseException:
        os.close(fd)
        raise
    # From here on only these private copies are used: the header may change under us.
    segment = Segment(fd, geometry, owner=False)
    segment.source = words[at.HDR_SOURCE // 8]
    segment.initial_seq = words[at.HDR_INITIAL_SEQ // 8]
    segment.checksum = words[at.HDR_FLAGS // 8] & 1 != 0
    segment.owner_watch = ProcessWatch(words[at.HDR_OWNER_IDENTITY // 8])
    return segment


def _memfd() -> int:
    return private_memfd("asys-numba-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def _reserve(fd: int, nbytes: int, where: str) -> None:
    # posix_fallocate, not ftruncate: a sparse file dies of SIGBUS at the first touch without a page.
    while True:
        try:
            os.posix_fallocate(fd, 0, nbytes)
            return
        except InterruptedError:
            continue
        except OSError as error:
            hint = (
                "lower bus.capacity_bytes, capacity_packets or shards, or enlarge it (docker: "
                "--shm-size; mount -o remount,size=... /dev/shm)"
            )
            raise _failure(
                f"cannot reserve {_mib(nbytes)} of shared memory in {where}", error, hint
            ) from error


def _available_bytes() -> int:
    """memfd pages are limited by no mount: asking for more than there is wakes the OOM killer."""
    with contextlib.suppress(OSError), open("/proc/meminfo") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 1 << 62


def _mib(nbytes: int) -> str:
    return f"{(nbytes + (1 << 20) - 1) >> 20} MiB"


def _limits_hint(
    error: OSError, otherwise: str = "raise the address-space limit (ulimit -v)"
) -> str:
    full = error.errno in (errno.EMFILE, errno.ENFILE)
    return "raise the open-file limit (ulimit -n)" if full else otherwise


def _failure(what: str, error: OSError, fix: str) -> BusError:
    return BusError(f"{what}: {error.strerror}; {fix}")
