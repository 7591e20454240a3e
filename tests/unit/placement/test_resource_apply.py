"""A plan in force on real processes, read back from the kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from asys_bench.config import load_config
from asys_bench.config.sections.resources import PinningMap
from asys_bench.contracts.stats import SlotField, StatsPage
from asys_bench.placement import apply
from asys_bench.placement.apply import current_cpus, pin, thread_environment
from asys_bench.placement.manager import (
    ResourceError,
    ResourceManager,
    read_plan,
    readings_of,
)
from asys_bench.placement.plan import HOST, Placement, Plan
from asys_bench.placement.readback import (
    Reading,
    allowed_cpus,
    differences,
    parse_numa_maps,
    read_process,
)
from asys_bench.placement.topology import Core, Topology

CPUS = sorted(os.sched_getaffinity(0))
TWO_CORES = Topology((Core(0, 0, (CPUS[0],)), Core(0, 0, (CPUS[-1],))), frozenset(CPUS))

CHILD = """
import json, os, sys
from asys_bench.config.sections.resources import IoPriority
from asys_bench.placement.apply import settle
from asys_bench.placement.plan import Placement
niceness = os.getpriority(os.PRIO_PROCESS, 0) + 3
place = Placement.from_dict(json.loads(sys.argv[1]))
problems = settle(place, niceness, IoPriority.IDLE, idle=sys.argv[2] == "idle")
print(json.dumps(problems), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def mask() -> Iterator[None]:
    """This process may be pinned by a test; afterwards it is as before."""
    before = current_cpus()
    yield
    pin(before)


@pytest.fixture
def page() -> Iterator[StatsPage]:
    made = StatsPage.create(["host", "watchdog", "trainer-0"])
    yield made
    made.close()


@pytest.mark.parametrize(("cpu", "expected"), [("normal", os.SCHED_BATCH), ("idle", os.SCHED_IDLE)])
def test_a_worker_takes_its_cpu_its_priority_and_its_place_at_the_disk(
    cpu: str, expected: int
) -> None:
    placement = Placement(frozenset({CPUS[-1]}))
    with subprocess.Popen(
        [sys.executable, "-P", "-c", CHILD, json.dumps(placement.to_dict()), cpu],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert json.loads(child.stdout.readline()) == []
        reading = read_process(child.pid)
        io_class = psutil.Process(child.pid).ionice().ioclass
        policy = os.sched_getscheduler(child.pid)
        child.communicate()
    assert io_class == psutil.IOPRIO_CLASS_IDLE
    assert policy == expected
    assert reading is not None
    assert reading.allowed == {CPUS[-1]}
    assert set(reading.threads.values()) == {frozenset({CPUS[-1]})}
    assert reading.nice == os.getpriority(os.PRIO_PROCESS, 0) + 3


def test_every_thread_of_the_host_is_pinned_and_gets_its_cpus_back(mask: None) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        before = current_cpus()
        assert pin({CPUS[0]}) == []
        reading = read_process(os.getpid())
        assert reading is not None
        assert set(reading.threads.values()) == {frozenset({CPUS[0]})}
        assert len(reading.threads) >= 2
        assert pin(before) == []
        assert current_cpus() == before
    finally:
        stop.set()
        thread.join()


def test_a_cpu_that_is_not_there_is_reported_not_raised(mask: None) -> None:
    (problem,) = pin({8000})
    assert "CPUs 8000 cannot be had" in problem


def test_libraries_of_workers_start_as_many_threads_as_configured() -> None:
    assert thread_environment(3)["OMP_NUM_THREADS"] == "3"


def test_a_memory_policy_is_set_for_a_block_and_taken_back() -> None:
    try:
        before = apply.policy()
    except apply.NumaError as error:
        pytest.skip(str(error))
    with apply.preferring(0) as problem:
        if problem is not None:
            pytest.skip(problem)
        assert apply.policy() == (apply.MPOL_PREFERRED, (0,))
    assert apply.policy() == before


def test_a_node_that_is_not_there_is_a_reason_and_no_exception() -> None:
    with apply.preferring(1023) as problem:
        assert problem is not None
        assert "policy" in problem or "node" in problem
    with pytest.raises(apply.NumaError, match=r"not in 0\.\.1023"):
        apply.prefer_node(5000)


def test_numa_maps_say_which_policy_holds_how_many_pages() -> None:
    text = (
        "00400000 default file=/bin/x mapped=3 N0=3 kernelpagesize_kB=4\n"
        "7f00 prefer:1 anon=10 dirty=10 N0=2 N1=8 kernelpagesize_kB=4\n"
        "7f10 prefer:1 stack\n\nshort\n"
    )
    policies, pages = parse_numa_maps(text)
    assert policies == {"default": 3, "prefer:1": 10}
    assert pages == {0: 5, 1: 8}


def test_a_status_without_the_line_allows_nothing() -> None:
    assert allowed_cpus("Name:\tx\nCpus_allowed_list:\t0-2,5\n") == {0, 1, 2, 5}
    assert allowed_cpus("Name:\tx\n") == frozenset()


def test_differences_name_process_thread_and_what_the_kernel_says() -> None:
    plan = Plan(
        "auto",
        {"a": Placement(frozenset({1}), 0), "b": Placement(), "c": Placement(frozenset({2}))},
    )
    wrong = Reading(7, frozenset({0, 1}), {7: frozenset({1}), 8: frozenset({0})}, 0, {"default": 4})
    right = Reading(9, frozenset({2}), {9: frozenset({2})})
    found = differences(plan, {"a": wrong, "b": wrong, "c": right})
    assert len(found) == 3
    assert "status says 0-1" in found[0]
    assert "thread 8: planned 1, affinity is 0" in found[1]
    assert "prefer:0" in found[2]


def config(**resources: Any) -> Any:
    sets = [f"resources.{name}={json.dumps(value)}" for name, value in resources.items()]
    return load_config("profile_consumer.yaml", sets, env={}).config


@pytest.mark.skipif(len(CPUS) < 2, reason="needs two CPUs")
def test_the_manager_pins_checks_and_releases(mask: None, page: StatsPage, tmp_path: Path) -> None:
    before = current_cpus()
    manager = ResourceManager(config(pinning="auto"), 1, TWO_CORES)
    manager.pin_host()
    page.slot("host").set(SlotField.PID, os.getpid())
    try:
        assert manager.check(page) == []
        assert manager.placements()["trainer-0"] == {"cpus": str(CPUS[-1]), "node": None}
        assert HOST not in manager.placements()
        with manager.bus_memory():
            pass
    finally:
        manager.release()
    assert current_cpus() == before
    assert manager.check(page) != []
    (tmp_path / "plan.json").write_text(json.dumps(manager.to_dict()))
    plan, needs = read_plan(tmp_path)
    assert plan.placements == manager.plan.placements
    assert needs == list(manager.needs)


def test_an_automatic_plan_that_is_refused_leaves_the_run_as_it_is(
    mask: None, caplog: pytest.LogCaptureFixture
) -> None:
    before = current_cpus()
    manager = ResourceManager(config(pinning="auto"), 64, TWO_CORES)
    manager.pin_host()
    assert current_cpus() == before
    assert manager.placements() == {}
    assert "nothing is pinned" in caplog.text
    assert "set resources.host_threads" in caplog.text


def test_a_map_that_cannot_be_had_stops_the_run() -> None:
    assert PinningMap(host="8000").host == "8000"
    with pytest.raises(ResourceError, match="CPU 8000 of host"):
        ResourceManager(config(pinning={"host": "8000"}), 1, TWO_CORES)


def test_a_run_without_a_plan_says_so(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"plan\.json"):
        read_plan(tmp_path)
    (tmp_path / "plan.json").write_text('{"schema": "asys.plan/9"}')
    with pytest.raises(ResourceError, match=r"asys\.plan/1"):
        read_plan(tmp_path)


def test_processes_that_are_gone_are_not_read(page: StatsPage) -> None:
    page.slot("trainer-0").set(SlotField.PID, 4_194_303)
    page.slot("host").set(SlotField.PID, os.getpid())
    assert list(readings_of(page)) == ["host"]
