"""A descriptor in somebody else's process: high, checked before use, and never a stranger's."""

from __future__ import annotations

import gc
import mmap
import os
import resource
import socket
from pathlib import Path

import pytest

from asys_bench.system.descriptor import (
    FIRST_NUMBER,
    Descriptor,
    HeldSocket,
    identity_of,
    map_shared,
)
from asys_bench.system.files.atomic import private_memfd


def memory(nbytes: int = 4096) -> int:
    fd = private_memfd("asys-test", os.MFD_CLOEXEC)
    os.truncate(fd, nbytes)
    return fd


def reused(number: int) -> tuple[int, int, str]:
    """The host closes `number` and opens a file of its own under it; what that is."""
    mine = os.open(os.devnull, os.O_RDONLY)
    os.dup2(mine, number, inheritable=False)
    os.close(mine)
    return identity_of(number)


def test_ours_are_high_and_not_inherited() -> None:
    low = memory()
    ours = Descriptor(low)
    assert ours.number >= FIRST_NUMBER
    assert not os.get_inheritable(ours.number)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(low)
    assert ours.close()
    assert not ours.close()


def test_a_low_limit_of_open_files_gets_what_there_is() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        ours = Descriptor(memory())
        assert 128 <= ours.number < 256
        ours.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_number_that_the_host_has_reused_is_neither_used_nor_closed() -> None:
    ours = Descriptor(memory())
    number = ours.number
    theirs = reused(number)
    try:
        assert not ours.held
        with pytest.raises(OSError, match="closed a descriptor"):
            _ = ours.number
        assert not ours.close()
        assert identity_of(number) == theirs
    finally:
        os.close(number)


def test_one_that_is_lost_comes_back_from_a_process_that_has_it_and_from_no_other() -> None:
    ours, copy = Descriptor(fd := memory()), Descriptor(memory())
    del fd
    spare = Descriptor.copy_of(ours.number)
    number = ours.number
    os.close(number)
    assert not ours.restore(f"/proc/self/fd/{copy.number}"), "another file"
    assert not ours.restore("/proc/self/fd/99999")
    assert ours.restore(f"/proc/self/fd/{spare.number}")
    assert ours.number == number, "run.json names it"
    for one in (ours, copy, spare):
        assert one.close()


def test_pidfds_are_told_apart() -> None:
    """Before Linux 6.9 all of them share one inode, with eventfds and others."""
    first, second = Descriptor(os.pidfd_open(os.getpid())), Descriptor(os.pidfd_open(os.getppid()))
    number = first.number
    os.dup2(second.number, number, inheritable=False)
    assert not first.held
    assert second.held
    os.close(number)
    second.close()


def test_a_socket_that_was_lost_is_not_closed_by_the_garbage_collector() -> None:
    one, other = socket.socketpair()
    held = HeldSocket(one)
    number = held.number
    assert number >= FIRST_NUMBER
    held.sock.sendall(b"x")
    assert other.recv(1) == b"x"
    theirs = reused(number)
    with pytest.raises(OSError, match="closed a socket"):
        _ = held.sock
    del held
    gc.collect()
    assert identity_of(number) == theirs
    os.close(number)
    other.close()


@pytest.mark.parametrize("writable", [True, False])
def test_a_mapping_keeps_no_descriptor_and_outlives_the_one_it_came_from(writable: bool) -> None:
    fd = memory(8192)
    os.pwrite(fd, b"second page", 4096)
    before = set(os.listdir("/proc/self/fd"))
    mapping = map_shared(fd, 4096, writable=writable, offset=4096)
    assert set(os.listdir("/proc/self/fd")) == before
    other = map_shared(fd, 8192)
    os.close(fd)
    assert mapping[:11] == b"second page"
    other[4096:4102] = b"SECOND"
    assert mapping[:6] == b"SECOND", "shared"
    assert memoryview(mapping).readonly is not writable
    view = memoryview(mapping)
    with pytest.raises(BufferError):
        mapping.close()
    view.release()
    mapping.close()
    other.close()


def test_python_s_own_mapping_would_keep_one() -> None:
    """Why `map_shared` exists; once this fails (`trackfd=False`, Python 3.13), it can go."""
    fd = memory()
    before = len(list(Path("/proc/self/fd").iterdir()))
    with mmap.mmap(fd, 4096):
        assert len(list(Path("/proc/self/fd").iterdir())) == before + 1
    os.close(fd)


def test_what_lies_past_the_end_is_refused_instead_of_a_sigbus_later() -> None:
    fd = memory(4096)
    with pytest.raises(OSError, match="past the end"):
        map_shared(fd, 4096, offset=4096)
    os.close(fd)
