"""CppShardedSPMCBus between processes: attach, kill, fork, and hostile segments."""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from asys_bench.backends.cpp_spmc.native import layout
from asys_bench.backends.cpp_spmc.plugin import plugin
from asys_bench.contracts.bus import (
    BaseDataBus,
    BusClient,
    BusError,
    BusHandle,
    BusPlugin,
    BusRequest,
    Delivery,
    GroupSpec,
)
from asys_bench.contracts.packet import PacketMeta
from asys_bench.registry import registry

if plugin.unavailable() is not None:
    pytest.skip(str(plugin.unavailable()), allow_module_level=True)

pytestmark = pytest.mark.rest
META = PacketMeta(0, 0, 5, (64,))
BYTES = bytes(range(64))
GROUPS = (GroupSpec("train"), GroupSpec("archive", Delivery.AT_LEAST_ONCE))

PRELUDE = """
import json, os, signal, sys, time
from asys_bench.backends.cpp_spmc.plugin import plugin
from asys_bench.contracts.bus import BusHandle, BusRequest, Delivery, GroupSpec
from asys_bench.contracts.packet import PacketMeta
META = PacketMeta(0, 0, 5, (64,))
def say(*words):
    print(*words, flush=True)
def attach():
    return plugin.attach(BusHandle.from_dict(json.loads(sys.argv[1]), [int(fd) for fd in sys.argv[2:]]))
"""


def make_bus(capacity_packets: int = 64, name: str | None = None) -> BaseDataBus:
    return plugin.build(
        BusRequest(
            GROUPS,
            capacity_packets=capacity_packets,
            capacity_bytes=1 << 20,
            options=plugin.options(name=name),
        )
    )


class Child:
    """A Python process running `code`; it is killed at the end."""

    def __init__(self, code: str, handle: BusHandle | None = None) -> None:
        fds = handle.fds if handle is not None else ()
        args = [json.dumps(handle.to_dict()), *map(str, fds)] if handle is not None else []
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + code, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=fds,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """SIGKILL; the process stays a zombie until `close`."""
        os.kill(self.process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


HOLDER = """
client = attach()
leases = [client.subscribe(group, "holder").pull_batch(3) for group in ("train", "archive")]
say(*map(len, leases))
time.sleep(600)
"""


@contextmanager
def killed_holder(bus: BaseDataBus) -> Iterator[Child]:
    for _ in range(5):
        assert bus.push(META, BYTES)
    with Child(HOLDER, bus.handle()) as child:
        assert child.line() == "3 3"
        yield child


def test_claims_of_a_killed_consumer_are_lost_or_redelivered_when_it_is_reaped() -> None:
    with make_bus() as bus, killed_holder(bus) as child:
        child.kill()
        assert bus.reap(child.process.pid) == 6
        assert bus.reap(child.process.pid) == 0
        account = bus.account()
        train, archive = account.group("train"), account.group("archive")
        assert (train.lost_in_flight, train.ready) == (3, 2)
        assert (archive.lost_in_flight, archive.redelivered, archive.ready) == (0, 3, 5)
        for group, want in (("train", [3, 4]), ("archive", [0, 1, 2, 3, 4])):
            with bus.pull_batch(group) as lease:
                assert [packet.seq for packet in lease] == want
        account = bus.account()
        assert [account.imbalance(group) for group in account.groups] == [0, 0]


def test_without_a_watchdog_an_idle_member_takes_back_what_the_dead_held() -> None:
    with make_bus() as bus:
        member = bus.subscribe("archive", "member")
        with killed_holder(bus) as child:
            member.pull_batch().release()
            child.kill()
            with member.pull_batch(timeout_s=60, min_packets=3) as lease:
                assert [packet.seq for packet in lease] == [0, 1, 2]


def test_without_a_watchdog_a_full_ring_takes_back_what_the_dead_held() -> None:
    with make_bus(capacity_packets=8) as bus, killed_holder(bus) as child:
        for group in ("train", "archive"):
            bus.pull_batch(group).release()
        while bus.push(META, BYTES):
            pass
        child.kill()
        time.sleep(0.06)  # a producer looks for the dead at most every 50 ms
        assert not bus.push(META, BYTES)  # the archive's three wait to be redelivered
        account = bus.account()
        assert account.group("train").lost_in_flight == 3
        assert account.group("archive").redelivered == 3


def test_a_stopped_consumer_keeps_its_claims() -> None:
    with make_bus() as bus, killed_holder(bus) as child:
        child.process.send_signal(signal.SIGSTOP)
        with bus.subscribe("archive", "member") as member:
            member.pull_batch().release()
            assert len(member.pull_batch(timeout_s=0.2)) == 0
            assert bus.account().group("archive").ready == 3


OWNER = """
bus = plugin.build(BusRequest((GroupSpec("train"),), capacity_bytes=1 << 20, options=plugin.options()))
handle = bus.handle()
fd = os.open(f"/proc/self/fd/{handle.fds[0]}", os.O_RDWR)
for _ in range(4):
    bus.push(META, bytes(64))
say(json.dumps(handle.to_dict()))
say(handle.fds[0])
time.sleep(600)
"""


def test_consumers_of_a_killed_owner_drain_and_end_and_the_account_stays_readable() -> None:
    with Child(OWNER) as owner:
        params = json.loads(owner.line())
        fd = os.open(f"/proc/{owner.process.pid}/fd/{int(owner.line())}", os.O_RDWR)
        client = plugin.attach(BusHandle.from_dict(params, [fd]))
        os.close(fd)
        member = client.subscribe("train", "m")
        member.pull_batch(2).release()
        assert not member.ended
        owner.kill()
        assert not member.ended
        start = time.monotonic()
        with member.pull_batch(8, timeout_s=120, min_packets=8) as lease:
            assert len(lease) == 2
        assert time.monotonic() - start < 60
        assert member.ended
        account = client.account()
        assert (account.produced, account.group("train").delivered) == (4, 4)
        assert account.imbalance(account.group("train")) == 0
        client.close()


PUSHER = """
bus = plugin.build(BusRequest((GroupSpec("train", Delivery.AT_LEAST_ONCE),), capacity_packets=256,
                              capacity_bytes=1 << 20, options=plugin.options()))
producer = bus.producer(0)
say(json.dumps(bus.handle().to_dict()))
say(bus.handle().fds[0])
index = 0
while True:
    index += producer.try_push(META, index.to_bytes(8, "little") * (1 + index % 400))
"""


def test_a_producer_killed_while_it_pushes_leaves_whole_packets_and_an_exact_account() -> None:
    for delay in (0.01, 0.02, 0.03):
        with Child(PUSHER) as owner:
            params = json.loads(owner.line())
            fd = os.open(f"/proc/{owner.process.pid}/fd/{int(owner.line())}", os.O_RDWR)
            client = plugin.attach(BusHandle.from_dict(params, [fd]))
            os.close(fd)
            member = client.subscribe("train", "m")
            stop = time.monotonic() + delay
            count = 0

            def drain(member: object = member) -> int:
                seen = 0
                with member.pull_batch(64, 0.1) as lease:  # type: ignore[attr-defined]
                    for packet in lease:
                        index = packet.seq
                        whole = index.to_bytes(8, "little") * (1 + index % 400)
                        assert bytes(packet.payload) == whole
                        seen += 1
                return seen

            while time.monotonic() < stop:
                count += drain()
            owner.kill()
            while not member.ended:
                count += drain()
            account = client.account()
            train = account.group("train")
            assert (train.delivered, account.produced - account.dropped_total) == (count, count)
            assert account.imbalance(train) == 0
            client.close()


def test_a_forked_child_cannot_act_for_its_parent() -> None:
    with make_bus() as bus:
        producer = bus.producer(0)
        member = bus.subscribe("train", "m")
        assert producer.try_push(META, BYTES)
        lease = member.pull_batch()
        pid = os.fork()
        if pid == 0:
            outcome = 1
            try:
                for act in (
                    lambda: producer.try_push(META, BYTES),
                    lambda: member.pull_batch(),
                    lambda: lease.release(),
                    lambda: bus.subscribe("train", "child"),
                ):
                    try:
                        act()
                    except BusError:
                        continue
                    raise AssertionError("the child acted for its parent")
                member.close()
                lease.give_back()
                bus.close()
                outcome = 0
            finally:
                os._exit(outcome)
        assert os.waitpid(pid, 0)[1] == 0
        assert lease.release() == 1
        assert producer.try_push(META, BYTES)
        assert bus.account().group("train").ready == 1


def test_a_group_that_another_process_makes_sees_packets_from_then_on() -> None:
    code = """
client = attach()
member = client.subscribe("late", "m", GroupSpec("late"))
say("joined")
with member.pull_batch(timeout_s=120) as lease:
    say(*[packet.seq for packet in lease])
say(client.account().group("late").missed)
"""
    with make_bus() as bus:
        producer = bus.producer(0)
        assert producer.try_push(META, BYTES)
        with Child(code, bus.handle()) as child:
            assert child.line() == "joined"
            assert producer.try_push(META, BYTES)
            assert [child.line(), child.line()] == ["1", "1"]


def test_a_named_bus_is_private_attaches_by_name_and_leaves_no_file() -> None:
    name = f"test-{os.getpid()}"
    path = Path("/dev/shm") / f"asys-{name}"
    with make_bus(name=name) as bus:
        assert path.stat().st_mode & 0o777 == 0o600
        assert bus.handle().fds == ()
        client = plugin.attach(bus.handle())
        assert client.name_of(0) == "identity"
        with pytest.raises(BusError, match="in use"):
            make_bus(name=name)
        path.chmod(0o644)
        with pytest.raises(BusError, match="0600"):
            plugin.attach(bus.handle())
        client.close()
    assert not path.exists()


def test_a_named_bus_of_dead_processes_is_replaced() -> None:
    name = f"stale-{os.getpid()}"
    path = Path("/dev/shm") / f"asys-{name}"
    code = f"""
bus = plugin.build(BusRequest((GroupSpec("train"),), options=plugin.options(name={name!r})))
say("up")
time.sleep(600)
"""
    with Child(code) as owner:
        assert owner.line() == "up"
        owner.kill()
    assert path.exists()
    with make_bus(name=name) as bus:
        plugin.attach(bus.handle()).close()
    assert not path.exists()


def attach_bytes(header: bytes, size: int, seals: bool = True) -> BusClient:
    fd = os.memfd_create("hostile", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        os.pwrite(fd, header, 0)
        if seals:
            fcntl.fcntl(
                fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            )
        return plugin.attach(BusHandle("cpp_spmc", {}, (fd,)))
    finally:
        os.close(fd)


@pytest.mark.parametrize("name", ["cpp_spmc", "numba_ring"])
def test_a_name_that_is_no_text_is_a_bus_error(name: str) -> None:
    ring = registry("backend").get(name, BusPlugin)
    if ring.unavailable():
        pytest.skip(str(ring.unavailable()))
    with make_bus() as bus:
        bus.intern("layer.0")
        fd = bus.handle().fds[0]
        good = os.pread(fd, os.fstat(fd).st_size, 0)
    place = good.index(b"layer.0")
    hostile = os.memfd_create("hostile", os.MFD_ALLOW_SEALING)
    try:
        os.write(hostile, good[:place] + b"\xff" + good[place + 1 :])
        fcntl.fcntl(
            hostile, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        )
        client = ring.attach(BusHandle(name, {}, (hostile,)))
        with pytest.raises(BusError, match="no UTF-8"):
            client.name_of(1)
        client.close()
    finally:
        os.close(hostile)


def test_a_hostile_header_is_refused_whatever_it_says() -> None:
    words = layout()
    with make_bus() as bus:
        fd = bus.handle().fds[0]
        size = os.fstat(fd).st_size
        good = os.pread(fd, 4096, 0)
    attach_bytes(good, size).close()
    with pytest.raises(BusError, match="sealed"):
        attach_bytes(good, size, seals=False)
    with pytest.raises(BusError, match="few"):
        attach_bytes(good[:100], 4096)
    rng = random.Random(7)
    for field in range(0, words["hdr_max_payload"] + 8, 8):
        for value in (0, 1, 2**31, 2**63, 2**64 - 1, rng.getrandbits(64)):
            bad = bytearray(good)
            bad[field : field + 8] = value.to_bytes(8, "little")
            # A few small numbers still describe this very file; those are safe to map and read.
            small = (field, value) in (
                (words["hdr_slots"], 1),
                (words["hdr_max_payload"], 0),
                (words["hdr_max_payload"], 1),
            )
            if bad == good or small:
                attach_bytes(bytes(bad), size).close()
                continue
            with pytest.raises(BusError):
                attach_bytes(bytes(bad), size)


def test_a_descriptor_that_points_outside_its_arena_is_an_error_not_a_crash() -> None:
    words = layout()
    with make_bus() as bus:
        bus.push(META, BYTES)
        with mmap.mmap(bus.handle().fds[0], 0) as segment:
            at = words["shards_offset"] + words["sh_slots"] + words["slot_descriptor"]
            segment[at : at + 8] = b"\xff" * 8
        lease = bus.pull_batch("train")
        with pytest.raises(BusError, match="outside"):
            lease.packets  # noqa: B018


def test_a_handle_without_its_descriptor_names_the_fix() -> None:
    with pytest.raises(BusError, match="pass_fds"):
        plugin.attach(BusHandle("cpp_spmc", {}))
    with pytest.raises(BusError, match="pass_fds"):
        plugin.attach(BusHandle("cpp_spmc", {}, (987_654,)))
    with pytest.raises(BusError, match="running"):
        plugin.attach(BusHandle("cpp_spmc", {"name": "nobody-made-this"}))


def test_too_large_a_bus_is_refused_before_it_takes_any_memory() -> None:
    with pytest.raises(BusError, match="capacity_bytes"):
        plugin.build(BusRequest(GROUPS, capacity_bytes=1 << 37, options=plugin.options()))
    with pytest.raises(BusError, match="256 GiB"):
        plugin.build(BusRequest(GROUPS, capacity_bytes=1 << 50, options=plugin.options()))


def test_no_free_descriptor_names_the_fix_and_leaks_nothing() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = len(os.listdir("/proc/self/fd"))
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    try:
        with pytest.raises(BusError, match="ulimit -n"):
            make_bus()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_refused_bus_leaks_neither_descriptors_nor_files() -> None:
    files = set(os.listdir("/dev/shm"))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(BusError):
            plugin.build(
                BusRequest(GROUPS, capacity_bytes=1 << 37, options=plugin.options(name="x"))
            )
        make_bus().close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert set(os.listdir("/dev/shm")) == files
