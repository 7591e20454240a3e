"""Workers on GPUs: who gets which, and why."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from asys_bench.config import load_config
from asys_bench.config.sections.resources import PinningMap
from asys_bench.placement.gpus import planned_devices
from asys_bench.placement.manager import ResourceManager
from asys_bench.placement.needs import needs_of
from asys_bench.placement.picture import draw
from asys_bench.placement.plan import HOST, Need, Placement, make_plan
from asys_bench.placement.topology import Core, Topology
from asys_bench.system.gpus import GpuCard


def machine(*nodes: int) -> Topology:
    """Eight cores on two NUMA nodes, and a GPU on each of `nodes`."""
    cores = tuple(Core(core // 4, core // 4, (core,)) for core in range(8))
    gpus = tuple(GpuCard(i, "H100", f"0000:{i}0:00.0", node) for i, node in enumerate(nodes))
    return Topology(cores, frozenset(range(8)), {0: 1 << 30, 1: 1 << 30}, gpus=gpus)


def needs(workers: int, device: str, *, shares: bool = False) -> list[Need]:
    trainers = [Need(f"trainer-{i}", "sink", 1, device, shares) for i in range(workers)]
    return [Need(HOST, "host", 1), *trainers, Need("archive-0", "sink")]


def chosen(topology: Topology, wishes: list[Need], host: set[int]) -> dict[str, tuple[str, str]]:
    plan = make_plan(topology, wishes, "none")
    plan = planned_devices(plan, topology, wishes, host)
    return {n: (p.device, p.why) for n, p in plan.placements.items() if p.device}


def test_workers_are_spread_over_the_gpus_that_the_host_leaves() -> None:
    found = chosen(machine(0, 0, 1), needs(4, "auto"), {0})
    assert found == {
        "trainer-0": ("cuda:1", "the host does not use it"),
        "trainer-1": ("cuda:2", "the host does not use it"),
        "trainer-2": ("cuda:1", "the host does not use it, 1 more of ours do"),
        "trainer-3": ("cuda:2", "the host does not use it, 1 more of ours do"),
    }


@pytest.mark.parametrize(("cpu", "gpu"), [("2", "cuda:1"), ("5", "cuda:0")])
def test_of_two_idle_gpus_the_one_on_the_workers_memory_node_comes_first(
    cpu: str, gpu: str
) -> None:
    topology, wishes = machine(1, 0), needs(1, "auto")
    pinning = PinningMap(host="0", workers={"trainer-0": cpu}, services="1")
    plan = make_plan(topology, wishes, pinning)
    assert planned_devices(plan, topology, wishes, set()).placement("trainer-0").device == gpu


def test_a_gpu_that_a_sink_names_counts_as_taken() -> None:
    wishes = [*needs(1, "cuda:1"), Need("other-0", "sink", 1, "auto")]
    found = chosen(machine(0, 0), wishes, set())
    assert found["trainer-0"] == ("cuda:1", "asked for")
    assert found["other-0"][0] == "cuda:0"


@pytest.mark.parametrize(
    ("topology", "device", "shares", "host", "wanted"),
    [
        (machine(0), "auto", False, {0},
         ("cpu", "the host uses cuda:0, no other GPU is there, and host_gpu_gib is not set")),
        (machine(0), "auto", True, {0}, ("cuda:0", "no other GPU is there, so the host shares it")),
        (machine(0), "cuda", False, {0}, ("cuda:0", "no other GPU is there, so the host shares it")),
        (machine(0, 0), "cuda:0", False, {0}, ("cuda:0", "asked for, and the host uses it too")),
        (machine(), "auto", True, set(), ("cpu", "no GPU is there")),
        (machine(), "cuda", False, set(), ("cuda", "asked for")),
        (machine(0), "auto", False, set(), ("cuda:0", "the host does not use it")),
    ],
)  # fmt: skip
def test_what_one_worker_gets(
    topology: Topology, device: str, shares: bool, host: set[int], wanted: tuple[str, str]
) -> None:
    assert chosen(topology, needs(1, device, shares=shares), host) == {"trainer-0": wanted}


def test_a_placement_that_shares_with_the_host_says_so_to_its_worker() -> None:
    topology, wishes = machine(0), needs(1, "auto", shares=True)
    plan = planned_devices(make_plan(topology, wishes, "none"), topology, wishes, {0})
    placement = plan.placement("trainer-0")
    assert placement.shared
    assert Placement.from_dict(placement.to_dict()) == placement
    assert "device" not in plan.placement("archive-0").to_dict()


def test_a_runs_plan_is_of_its_configuration_and_goes_to_its_workers() -> None:
    sets = ("sinks.trainer.options.device=auto", "sinks.trainer.options.host_gpu_gib=4")
    config = load_config("profile_consumer.yaml", sets, {}).config
    (trainer,) = (need for need in needs_of(config, 1) if need.name == "trainer-0")
    assert (trainer.device, trainer.shares_host_gpu) == ("auto", True)
    manager = ResourceManager(config, 1, machine(0))
    manager.place_on_gpus({0})
    why = "no other GPU is there, so the host shares it"
    assert manager.devices == {"trainer-0": {"device": "cuda:0", "why": why}}
    assert manager.placements()["trainer-0"]["shared"] is True
    assert manager.to_dict()["placements"]["trainer-0"]["device"] == "cuda:0"


def test_the_picture_shows_the_gpus_and_who_is_on_them() -> None:
    topology, wishes = machine(0, 1), needs(2, "auto")
    plan = planned_devices(make_plan(topology, wishes, "auto"), topology, wishes, {0})
    out = io.StringIO()
    console = Console(file=out, width=120, color_system=None)
    console.print(draw(topology, plan, wishes, 120, host_gpus={0}))
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert "[ 0 H ] H100, node 0" in lines
    assert "[ 1 AB ] H100, node 1" in lines
    assert any(
        "trainer-1" in line and "cuda:1  the host does not use it, 1" in line for line in lines
    )
    bare = replace(topology, gpus=())
    out.truncate(0)
    console.print(draw(bare, make_plan(bare, needs(2, ""), "auto"), needs(2, ""), 120))
    assert "GPU" not in out.getvalue()
    assert "trains on" not in out.getvalue()
