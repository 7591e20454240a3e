"""NumbaRingBus beyond the bus contract: layout, headers, code cache, hostile segments."""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import random
import resource
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from asys_bench.backends.numba_ring import plugin as plugin_module
from asys_bench.backends.numba_ring.plugin import plugin
from asys_bench.contracts.bus import (
    BaseDataBus,
    BusClient,
    BusError,
    BusHandle,
    BusRequest,
    Delivery,
    DropReason,
    GroupSpec,
)
from asys_bench.contracts.packet import PacketError, PacketMeta

if plugin.unavailable() is not None:
    pytest.skip(str(plugin.unavailable()), allow_module_level=True)

from asys_bench.backends.cpp_spmc.plugin import plugin as cpp_plugin
from asys_bench.backends.numba_ring.addresses import locate
from asys_bench.backends.numba_ring.core import code_cache, compiled, layout

TRAIN = GroupSpec("train")
ARCHIVE = GroupSpec("archive", Delivery.AT_LEAST_ONCE)
META = PacketMeta(0, 0, 5, (64,))
BYTES = bytes(range(64))


@contextmanager
def open_bus(
    *groups: GroupSpec, options: dict[str, Any] | None = None, **request: Any
) -> Iterator[BaseDataBus]:
    request.setdefault("capacity_packets", 64)
    request.setdefault("capacity_bytes", 1 << 20)
    built = plugin.options(**(options or {}))
    with plugin.build(BusRequest(groups or (TRAIN,), options=built, **request)) as bus:
        yield bus


# Layout.


def test_every_constant_of_the_layout_is_the_compiled_modules() -> None:
    if cpp_plugin.unavailable() is not None:
        pytest.skip(str(cpp_plugin.unavailable()))
    from asys_bench.backends.cpp_spmc.native import layout as cpp_layout

    theirs = cpp_layout()
    ours = {name: getattr(layout, name.upper(), None) for name in theirs}
    assert ours == theirs


def test_a_slot_is_one_line_and_no_table_reaches_the_next() -> None:
    assert layout.GROUPS * 8 + 8 == layout.SLOT_STRIDE == 64
    assert layout.OWNERS_OFFSET + layout.OWNERS * layout.OWNER_STRIDE <= layout.GROUPS_OFFSET
    assert layout.GROUPS_OFFSET + layout.GROUPS * layout.GROUP_STRIDE <= layout.NAMES_OFFSET
    assert layout.SH_HINTS + layout.GROUPS * layout.SH_HINT_STRIDE <= layout.SH_SLOTS
    assert layout.SHARDS_OFFSET % layout.PAGE == 0


# Headers.


@pytest.mark.parametrize(
    "change",
    [
        {"shape": (1,) * 9},
        {"shape": (2**32,)},
        {"hook_id": 65536},
        {"host_step": -1},
        {"kind": 256},
        {"sampling_rate": 1e300},
        {"token_position": 2**31},
        {"params": "text"},
    ],
    ids=str,
)
def test_a_meta_that_no_header_can_hold_is_a_packet_error_and_counts_nothing(
    change: dict[str, Any],
) -> None:
    with open_bus() as bus:
        with pytest.raises(PacketError):
            bus.push(META._replace(**change), BYTES)
        assert bus.account().produced == 0
        assert bus.push(META, BYTES)


# Payloads.


@pytest.mark.parametrize(
    "payload",
    [
        BYTES,
        bytearray(BYTES),
        memoryview(BYTES),
        np.frombuffer(BYTES, np.int16),
        np.frombuffer(BYTES, np.int16).copy().reshape(4, 8),
        torch.arange(64, dtype=torch.uint8),
    ],
    ids=["bytes", "bytearray", "memoryview", "read-only array", "array", "tensor"],
)
def test_the_address_of_a_payload_is_where_its_bytes_are(payload: Any) -> None:
    address, nbytes, keep = locate(payload)
    assert nbytes == 64
    with open_bus(checksum=True) as bus:
        assert bus.push(META, payload)
        with bus.pull_batch("train") as lease:
            assert bytes(lease.packets[0].payload) == BYTES
            assert lease.packets[0].verify()
    assert address
    del keep


@pytest.mark.parametrize(
    "payload",
    [torch.zeros(4, 4).t(), np.zeros((4, 4)).T[:2], torch.empty(2, device="meta"), "text"],
    ids=["tensor", "array", "meta", "str"],
)
def test_what_is_no_contiguous_memory_is_a_packet_error(payload: Any) -> None:
    with pytest.raises(PacketError):
        locate(payload)


def test_rows_carry_their_own_checksums() -> None:
    rows = torch.arange(20 * 33, dtype=torch.float32).reshape(20, 33)
    with open_bus(checksum=True) as bus:
        assert bus.producer().try_push_many(META, rows) == 20
        with bus.pull_batch("train") as lease:
            assert all(packet.verify() for packet in lease)
            assert len({packet.crc for packet in lease}) == 20


def test_random_sizes_through_many_wraps_of_the_arena_arrive_intact() -> None:
    rng = np.random.default_rng(1)
    sent: list[bytes] = []
    got: list[bytes] = []
    options = {"window_bytes": 8192, "streaming_threshold_bytes": 1000}
    with open_bus(capacity_bytes=1 << 15, options=options) as bus:
        producer = bus.producer(0)
        for _ in range(3000):
            payload = rng.bytes(int(rng.integers(0, 3000)))
            if producer.try_push(META, payload):
                sent.append(payload)
            if rng.random() < 0.4:
                with bus.pull_batch("train", int(rng.integers(1, 8)), 0) as lease:
                    got += [bytes(packet.payload) for packet in lease]
        while len(got) < len(sent):
            with bus.pull_batch("train") as lease:
                got += [bytes(packet.payload) for packet in lease]
        assert got == sent


# Leases.


def test_payloads_are_read_only_and_a_view_of_a_view_keeps_the_lease() -> None:
    with open_bus() as bus:
        assert bus.producer().try_push_many(META, np.zeros((4, 64), np.uint8)) == 4
        lease = bus.pull_batch("train")
        assert lease.packets[0].payload.readonly
        array = np.frombuffer(lease.packets[1].payload, np.uint8)
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True
        part = array[8:16].view(np.uint32)
        del array
        with pytest.raises(BufferError, match="alive"):
            lease.release()
        del part
        assert lease.release() == 4


def test_views_of_one_lease_do_not_keep_another() -> None:
    with open_bus() as bus:
        for _ in range(2):
            bus.push(META, BYTES)
        first, second = bus.pull_batch("train", 1), bus.pull_batch("train", 1)
        view = np.frombuffer(first.packets[0].payload, np.uint8)
        assert len(second.packets) == 1
        assert second.release() == 1
        with pytest.raises(BufferError):
            first.release()
        assert view.tobytes() == BYTES
        del view
        assert first.release() == 1


def test_a_dropped_lease_is_given_back_unless_a_view_of_it_lives() -> None:
    with open_bus(ARCHIVE) as bus:
        bus.push(META, BYTES)
        lease = bus.pull_batch("archive")
        view = lease.packets[0].payload[:8]
        del lease
        assert len(bus.pull_batch("archive", timeout_s=0)) == 0, "handed on under a reader"
        assert bytes(view) == BYTES[:8]
        bus.push(META, BYTES)
        lease = bus.pull_batch("archive")
        assert lease.packets[0].seq == 1
        del lease
        assert [packet.seq for packet in bus.pull_batch("archive", timeout_s=0)] == [1]


def test_a_payload_outlives_its_bus_as_memory() -> None:
    with open_bus() as bus:
        bus.push(META, BYTES)
        lease = bus.pull_batch("train")
        view = np.frombuffer(lease.packets[0].payload, np.uint8)
    assert view.tobytes() == BYTES


def test_the_arena_is_mapped_read_only_in_a_client() -> None:
    with open_bus(capacity_bytes=1 << 20) as bus:
        handle = bus.handle()
        before = mapped_bytes(handle.fds[0])
        client = plugin.attach(handle)
        grown = mapped_bytes(handle.fds[0]) - before
        assert set(grown) == {"r--s", "rw-s"}
        assert grown["r--s"] >= 1 << 20
        assert grown.total() == os.fstat(handle.fds[0]).st_size
        client.close()


def mapped_bytes(fd: int) -> Counter[str]:
    """Bytes of this process's mappings of the segment behind `fd`, by access mode.

    Not their number: the kernel joins neighbours, those of owner and client too.
    """
    inode = str(os.fstat(fd).st_ino)
    found: Counter[str] = Counter()
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, access, _, _, its_inode, *name = line.split()
        if its_inode == inode and name and "asys-numba" in name[0]:
            first, last = (int(address, 16) for address in addresses.split("-"))
            found[access] += last - first
    return found


# Refusals.


def test_a_blocking_push_goes_through_when_room_appears_and_counts_once() -> None:
    with open_bus(capacity_packets=2) as bus:
        producer = bus.producer(0)
        assert producer.try_push_many(META, np.zeros((2, 64), np.uint8)) == 2
        timer = threading.Timer(0.05, lambda: bus.pull_batch("train", 1).release())
        timer.start()
        assert producer.push(META, BYTES, 60.0)
        timer.join()
        account = bus.account()
        assert (account.produced, account.dropped_total) == (3, 0)


def test_a_reservation_occupies_its_producer_until_it_ends() -> None:
    with open_bus() as bus:
        producer = bus.producer(0)
        reservation = producer.reserve(100)
        assert reservation is not None
        with pytest.raises(BusError, match="reservation"):
            producer.try_push(META, BYTES)
        with pytest.raises(PacketError):
            reservation.commit(META, 101)
        bus.finish()
        assert not reservation.commit(META, 5)
        assert producer.last_refusal is DropReason.CLOSED
        with pytest.raises(BusError):
            reservation.commit(META)


def test_a_declared_group_that_is_retired_holds_nothing_up_until_someone_revives_it() -> None:
    with open_bus(TRAIN, ARCHIVE, capacity_packets=4) as bus:
        client = plugin.attach(bus.handle())
        producer = bus.producer(0)
        with client.subscribe("train", "far") as train:
            assert producer.try_push_many(META, np.zeros((4, 64), np.uint8)) == 4
            train.pull_batch().release()
            assert not producer.try_push(META, BYTES), "the archive holds the ring"
            with pytest.raises(BusError, match="nobody"):
                client.retire("nobody")
            client.retire("archive")
            for _ in range(20):
                assert producer.push(META, BYTES, 60.0)
                train.pull_batch().release()
        archive = bus.subscribe("archive", "revived")
        missed = bus.account().group("archive").missed
        assert producer.try_push(META, BYTES)
        with archive.pull_batch() as lease:
            assert lease.packets[-1].seq == 24
        account = bus.account()
        assert missed > 0
        assert [account.imbalance(group) for group in account.groups] == [0, 0]
        client.close()


HOLDER = """
import json, sys, time
from asys_bench.backends.numba_ring.plugin import plugin
from asys_bench.contracts.bus import BusHandle
handle = BusHandle.from_dict(json.loads(sys.argv[1]), [int(sys.argv[2])])
lease = plugin.attach(handle).subscribe("archive", "holder").pull_batch(4)
print(len(lease), flush=True)
time.sleep(600)
"""


@pytest.mark.rest
def test_a_full_producer_takes_back_what_a_dead_reader_holds_and_no_watchdog_is_needed() -> None:
    with open_bus(ARCHIVE, capacity_packets=4) as bus:
        producer = bus.producer(0)
        assert producer.try_push_many(META, np.zeros((4, 64), np.uint8)) == 4
        handle = bus.handle()
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, json.dumps(handle.to_dict()), str(handle.fds[0])],
            stdout=subprocess.PIPE,
            pass_fds=handle.fds,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"4\n"
        process.kill()
        process.wait(60)
        process.stdout.close()
        assert not producer.push(META, BYTES, 0.1)
        account = bus.account().group("archive")
        assert (account.ready, account.redelivered) == (4, 4)


def test_a_forked_child_cannot_act_for_its_parent_nor_end_what_is_its_parents() -> None:
    with open_bus() as bus:
        producer = bus.producer(0)
        member = bus.subscribe("train", "m")
        assert producer.try_push(META, BYTES)
        lease = member.pull_batch()
        pid = os.fork()
        if pid == 0:
            refused = 0
            for act in (
                lambda: producer.try_push(META, BYTES),
                lambda: producer.reserve(5),
                lambda: member.pull_batch(),
                lambda: lease.release(),
                lambda: bus.account(),
            ):
                try:
                    act()
                except BusError:
                    refused += 1
            member.close()
            lease.give_back()
            bus.close()
            os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
        assert lease.release() == 1
        assert producer.try_push(META, BYTES)
        assert bus.account().group("train").ready == 1


# Segments.


def attach_bytes(header: bytes, size: int, seals: bool = True) -> BusClient:
    fd = os.memfd_create("hostile", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        os.pwrite(fd, header, 0)
        if seals:
            wanted = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, wanted)
        return plugin.attach(BusHandle("numba_ring", {}, (fd,)))
    finally:
        os.close(fd)


def test_a_hostile_header_is_refused_whatever_it_says() -> None:
    with open_bus() as bus:
        fd = bus.handle().fds[0]
        size = os.fstat(fd).st_size
        good = os.pread(fd, 4096, 0)
    attach_bytes(good, size).close()
    with pytest.raises(BusError, match="sealed"):
        attach_bytes(good, size, seals=False)
    with pytest.raises(BusError, match="few"):
        attach_bytes(good[:100], 4096)
    rng = random.Random(7)
    for field in range(0, layout.HDR_MAX_PAYLOAD + 8, 8):
        for value in (0, 1, 2**31, 2**63, 2**64 - 1, rng.getrandbits(64)):
            bad = bytearray(good)
            bad[field : field + 8] = value.to_bytes(8, "little")
            # A few small numbers still describe this very file; those are safe to map and read.
            still_fits = [(layout.HDR_SLOTS, 1), (layout.HDR_MAX_PAYLOAD, 0)]
            still_fits.append((layout.HDR_MAX_PAYLOAD, 1))
            if bad == good or (field, value) in still_fits:
                attach_bytes(bytes(bad), size).close()
                continue
            with pytest.raises(BusError):
                attach_bytes(bytes(bad), size)


def test_a_descriptor_that_points_outside_its_arena_is_an_error_not_a_crash() -> None:
    with open_bus() as bus:
        bus.push(META, BYTES)
        with mmap.mmap(bus.handle().fds[0], 0) as segment:
            at = layout.SHARDS_OFFSET + layout.SH_SLOTS + layout.SLOT_DESCRIPTOR
            segment[at : at + 8] = b"\xff" * 8
        lease = bus.pull_batch("train")
        with pytest.raises(BusError, match="outside"):
            lease.packets  # noqa: B018


def test_a_handle_without_its_descriptor_names_the_fix() -> None:
    with pytest.raises(BusError, match="pass_fds"):
        plugin.attach(BusHandle("numba_ring", {}))
    with pytest.raises(BusError, match="pass_fds"):
        plugin.attach(BusHandle("numba_ring", {}, (987_654,)))
    with pytest.raises(BusError, match="running"):
        plugin.attach(BusHandle("numba_ring", {"name": "nobody-made-this"}))


def test_a_named_bus_is_private_is_not_taken_over_and_leaves_no_file() -> None:
    name = f"numba-{os.getpid()}"
    path = Path("/dev/shm") / f"asys-{name}"
    with open_bus(options={"name": name}) as bus:
        assert path.stat().st_mode & 0o777 == 0o600
        plugin.attach(bus.handle()).close()
        with pytest.raises(BusError, match="in use"), open_bus(options={"name": name}):
            pass
        path.chmod(0o644)
        with pytest.raises(BusError, match="0600"):
            plugin.attach(bus.handle())
    assert not path.exists()
    path.write_bytes(b"left behind")
    path.chmod(0o600)
    with open_bus(options={"name": name}):
        assert path.stat().st_size > 100
    assert not path.exists()


def test_too_large_a_bus_is_refused_before_it_takes_any_memory() -> None:
    with pytest.raises(BusError, match="capacity_bytes"), open_bus(capacity_bytes=1 << 37):
        pass
    with pytest.raises(BusError, match="256 GiB"), open_bus(capacity_bytes=1 << 50):
        pass


def test_no_free_descriptor_names_the_fix_and_leaks_nothing() -> None:
    with open_bus():
        pass  # what it imports takes descriptors, too
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = len(os.listdir("/proc/self/fd"))
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    try:
        with pytest.raises(BusError, match="ulimit -n"), open_bus():
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(os.listdir("/proc/self/fd")) == before


# Compiling.


def test_nothing_is_compiled_on_the_first_push() -> None:
    with open_bus() as bus:
        before = compiled.log.functions
        started = time.perf_counter()
        assert bus.push(META, BYTES)
        bus.pull_batch("train").release()
        assert compiled.log.functions == before > 20
        assert time.perf_counter() - started < 20.0
    assert "functions ready in" in str(compiled.log)


def test_importing_the_plugin_imports_no_numba() -> None:
    code = (
        "import sys, asys_bench.backends.numba_ring.plugin as p; "
        "p.plugin.unavailable(); assert 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)


def test_a_machine_without_numba_is_told_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin_module, "find_spec", lambda name: None)
    assert "pip install" in str(plugin.unavailable())
    monkeypatch.setattr(plugin_module.platform, "machine", lambda: "riscv64")
    assert "riscv64" in str(plugin.unavailable())


def test_code_is_cached_only_where_nobody_else_can_write(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    assert code_cache.unsafe_reason(private) is None
    private.chmod(0o755)
    assert "0700" in str(code_cache.unsafe_reason(private))
    private.chmod(0o700)
    tmp_path.chmod(0o777)
    assert "written by others" in str(code_cache.unsafe_reason(private))
    tmp_path.chmod(0o700)
    link = tmp_path / "link"
    link.symlink_to(private)
    assert "not a directory" in str(code_cache.unsafe_reason(link))


@pytest.mark.rest
def test_a_damaged_code_cache_costs_one_compile_and_is_repaired(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    code = """
import sys
from asys_bench.backends.numba_ring.core import compiled
@compiled.entry(1)
def nothing(x: int) -> int:
    return x
assert nothing(5) == 5
print(compiled.log.from_cache)
"""
    script = tmp_path / "script.py"
    script.write_text(code)

    def from_cache() -> int:
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, timeout=240
        )
        return int(done.stdout)

    assert [from_cache(), from_cache()] == [0, 1]
    for path in (tmp_path / "asys-i" / "numba_ring").iterdir():
        path.write_bytes(b"junk")
    assert [from_cache(), from_cache()] == [0, 1]


@pytest.fixture
def temporary(monkeypatch, tmp_path):
    """A sticky folder for temporary files, as /tmp is; and another one to work in."""
    folder, here = tmp_path / "tmp", tmp_path / "here"
    here.mkdir()
    folder.mkdir()
    folder.chmod(0o1777)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(here)
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.mark.parametrize("cache_home", ["", "cache", "./cache"])
def test_without_a_home_code_is_kept_among_temporary_files_and_not_in_the_working_directory(
    monkeypatch, temporary, cache_home
):
    monkeypatch.setenv("XDG_CACHE_HOME", cache_home)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for an unknown user
    found = code_cache.private_directory.__wrapped__()
    assert found == temporary / f"asys-i-cache-{os.geteuid()}" / "numba_ring"
    assert code_cache.unsafe_reason(found) is None
    assert os.listdir() == []


def test_a_home_that_cannot_be_written_is_passed_over(monkeypatch, temporary):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    found = code_cache.private_directory.__wrapped__()
    assert found is not None
    assert found.is_relative_to(temporary)


def test_a_code_cache_that_another_user_made_first_is_not_loaded_from(
    monkeypatch, temporary, caplog
):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    folder = temporary / f"asys-i-cache-{os.geteuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    assert code_cache.private_directory.__wrapped__() is None
    assert "can be written by others" in caplog.text
    assert "XDG_CACHE_HOME" in caplog.text
