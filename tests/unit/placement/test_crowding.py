"""The hint about torch's threads in the host beside the workers."""

import os

import pytest
import torch

from asys_bench.config import load_config
from asys_bench.placement.needs import crowding, crowding_of, room_for_host
from asys_bench.placement.plan import Need


def needs(host, *workers):
    return [Need("host", "host", host), *(Need(f"w{i}", "sink", n) for i, n in enumerate(workers)),
            Need("watchdog", "service"), Need("monitor-log", "service")]  # fmt: skip


@pytest.mark.parametrize(
    ("threads", "workers", "cores", "room"),
    [
        (1, (1, 1), 2, 1),  # one thread is never too many
        (2, (1, 1), 2, 1),
        (6, (1, 1), 8, 6),  # it just fits
        (7, (1, 1), 8, 6),
        (8, (2, 1), 8, 5),
        (8, (), 8, 8),  # nobody to share with
    ],
)
def test_the_hint_comes_when_host_and_workers_want_more_threads_than_there_are_cores(
    threads, workers, cores, room
):
    wanted = needs(threads, *workers)
    assert room_for_host(wanted, cores) == room
    said = crowding(wanted, cores)
    assert (said is not None) == (threads > room)
    assert crowding(needs(room, *workers), cores) is None, "what it recommends is enough"
    if said is not None:
        said_so = f"{threads} torch threads of the host and {sum(workers)} of the workers share {cores} CPU"
        assert said.startswith(said_so)


def test_the_hint_says_what_helps_and_pinned_runs_get_none(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    config = load_config("base.yaml", ["host.kind=synthetic"], env={}).config
    assert "try set(2)" in (crowding_of(config, "set({})") or "")
    assert crowding_of(load_config("profile_consumer.yaml", env={}).config, "") is None
    pinned = load_config("base.yaml", ["host.kind=synthetic", "resources.pinning=auto"], env={})
    assert crowding_of(pinned.config, "") is None
