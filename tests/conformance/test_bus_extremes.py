"""Wrapped sequence numbers, and machines that have run out of something."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap

import pytest

from asys_bench.contracts.bus import BusPlugin, BusRequest, Delivery, GroupSpec

from .support import PATIENCE_S, pull_numbers, push_numbers

GROUPS = (GroupSpec("train"), GroupSpec("archive", Delivery.AT_LEAST_ONCE))


@pytest.mark.parametrize(
    "first", [2**32 - 5, 2**40 - 5, 2**63 - 5, 2**64 - 1000], ids=["2^32", "2^40", "2^63", "2^64"]
)
def test_sequence_numbers_may_wrap(plugin: BusPlugin, first: int) -> None:
    if "initial_seq" not in plugin.options.model_fields:
        pytest.skip(f"{plugin.name} has no option initial_seq")
    options = plugin.options.model_validate({"initial_seq": first})
    request = BusRequest(
        groups=GROUPS, capacity_packets=16, capacity_bytes=1 << 16, options=options
    )
    with plugin.build(request) as bus:
        producer = bus.producer(0)
        members = [bus.subscribe(group.name, "a") for group in GROUPS]
        for start in range(0, 1200, 8):
            push_numbers(producer, start, 8)
            for member in members:
                assert pull_numbers(member, 8) == list(range(start, start + 8))
        push_numbers(producer, 1200, 3)
        bus.finish()
        for member in members:
            with member.pull_batch(8, PATIENCE_S, 3) as lease:
                assert [packet.seq for packet in lease] == [
                    (first + number) % 2**64 for number in (1200, 1201, 1202)
                ]
                packet = None  # noqa: F841 - the comprehension's last view
            member.close()
        account = bus.account()
        assert [account.imbalance(group) for group in account.groups] == [0, 0]
        assert all(group.delivered == 1203 for group in account.groups)


def _run(script: str, *arguments: str, prefix: tuple[str, ...] = ()) -> None:
    done = subprocess.run(
        [*prefix, sys.executable, "-P", "-c", textwrap.dedent(script), *arguments],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_no_descriptor_left_is_a_typed_error_and_leaks_nothing(plugin: BusPlugin) -> None:
    _run(
        """
        import os, resource, sys
        from asys_bench.contracts.bus import BusError, BusPlugin, BusRequest, GroupSpec
        from asys_bench.registry import registry
        plugin = registry("backend").get(sys.argv[1], BusPlugin)
        request = BusRequest(groups=(GroupSpec("g"),), capacity_bytes=1 << 16, options=plugin.options())
        plugin.build(request).close()  # lazy imports want descriptors too
        taken = [os.open("/dev/null", os.O_RDONLY)]
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 1, hard))
        try:
            bus = plugin.build(request)
        except (BusError, OSError) as error:
            print(error, file=sys.stderr)
        else:
            assert not plugin.capabilities.cross_process, "built without a descriptor?"
            bus.close()
        os.close(taken.pop())
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        open_now = len(os.listdir("/proc/self/fd"))
        with plugin.build(request) as bus:
            assert bus.producer(0) is not None
        bus = None  # a ring keeps its memory as long as anything could still point into it
        assert len(os.listdir("/proc/self/fd")) == open_now
        """,
        plugin.name,
    )


def test_a_full_dev_shm_is_a_typed_error_and_leaves_no_file(plugin: BusPlugin) -> None:
    if "name" not in plugin.options.model_fields:
        pytest.skip(f"{plugin.name} has no named segments")
    unshare = shutil.which("unshare")
    if unshare is None or os.geteuid() != 0:
        pytest.skip("needs root and unshare (util-linux) to make a small /dev/shm")
    if subprocess.run([unshare, "-m", "true"], check=False).returncode:
        pytest.skip("needs mount namespaces to make a small /dev/shm")
    script = """
        import os, sys
        from asys_bench.contracts.bus import BusError, BusPlugin, BusRequest, GroupSpec
        from asys_bench.registry import registry
        plugin = registry("backend").get(sys.argv[1], BusPlugin)
        options = plugin.options(name="scarce")
        request = BusRequest(groups=(GroupSpec("g"),), capacity_bytes=8 << 20, options=options)
        try:
            plugin.build(request)
        except BusError as error:
            print(error, file=sys.stderr)
        else:
            raise SystemExit("8 MiB in a /dev/shm of 1 MiB?")
        assert os.listdir("/dev/shm") == [], os.listdir("/dev/shm")
        """
    small = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
    _run(script, plugin.name, prefix=(unshare, "-m", "sh", "-c", small, "sh"))
