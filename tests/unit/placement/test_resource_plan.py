"""Plans for machines that are not here: what every plan must hold, and what is refused and why."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.console import Console

from asys_bench.config.sections.resources import CpuPriority, NumaMode, PinningMap, ResourcesConfig
from asys_bench.placement.picture import draw
from asys_bench.placement.plan import HOST, Need, Placement, Plan, make_plan
from asys_bench.placement.topology import Core, Topology
from asys_bench.system.cpu_lists import parse_cpus

GIB = 1 << 30


def machine(
    nodes: int = 1,
    cores: int = 4,
    threads: int = 1,
    usable: frozenset[int] | None = None,
    quota: float | None = None,
) -> Topology:
    """Linux's usual numbering: first threads of all cores, then the second ones."""
    every = nodes * cores
    made = tuple(
        Core(core // cores, core // cores, tuple(core + t * every for t in range(threads)))
        for core in range(every)
    )
    cpus = frozenset(range(every * threads))
    return Topology(
        made, cpus if usable is None else usable, dict.fromkeys(range(nodes), GIB), None, quota
    )


def needs(host: int = 1, sinks: int = 2, threads: int = 1, monitors: int = 1) -> list[Need]:
    return [
        Need(HOST, "host", host),
        *(Need(f"trainer-{index}", "sink", threads) for index in range(sinks)),
        Need("watchdog", "service"),
        *(Need(f"monitor-{index}", "service") for index in range(monitors)),
    ]


def core_of(topology: Topology, cpu: int) -> Core:
    return next(core for core in topology.cores if cpu in core.cpus)


def test_on_two_cores_the_host_has_one_and_everyone_else_the_other() -> None:
    plan = make_plan(machine(cores=2), needs(sinks=2), "auto")
    assert plan.placement(HOST).cpus == {0}
    others = {name: p.cpus for name, p in plan.placements.items() if name != HOST}
    assert set(others.values()) == {frozenset({1})}
    assert "share 1 core" in plan.notes[0]


def test_with_cores_to_spare_each_worker_has_its_own_and_the_host_the_rest() -> None:
    plan = make_plan(machine(cores=8), needs(host=2, sinks=2), "auto")
    assert plan.placement(HOST).cpus == {0, 1, 5, 6, 7}
    assert plan.placement("trainer-0").cpus == {2}
    assert plan.placement("trainer-1").cpus == {3}
    assert plan.placement("watchdog").cpus == plan.placement("monitor-0").cpus == {4}


def test_no_worker_runs_on_the_other_thread_of_a_core_of_the_host() -> None:
    topology = machine(cores=2, threads=2)
    plan = make_plan(topology, needs(), "auto")
    assert plan.placement(HOST).cpus == {0, 2}
    assert plan.placement("trainer-0").cpus == {1, 3}


def test_the_workers_are_on_the_node_of_the_host_and_the_other_node_stays_free() -> None:
    plan = make_plan(machine(nodes=2, cores=4), needs(host=2, sinks=1), "auto")
    used = frozenset[int]().union(*(p.cpus for p in plan.placements.values()))
    assert used == {0, 1, 2, 3}
    assert {p.node for p in plan.placements.values()} == {0}


def test_a_host_that_fills_its_node_sends_the_workers_to_the_other() -> None:
    plan = make_plan(machine(nodes=2, cores=4), needs(host=4, sinks=2), "auto")
    assert plan.placement(HOST).cpus == {0, 1, 2, 3}
    assert plan.placement(HOST).node == 0
    assert plan.placement("trainer-0").cpus == {4}
    assert plan.placement("trainer-0").node == 1


def test_a_host_larger_than_a_node_is_not_bound_to_memory() -> None:
    plan = make_plan(machine(nodes=2, cores=4), needs(host=6, sinks=1), "auto")
    assert len(plan.placement(HOST).cpus) == 6
    assert plan.placement(HOST).node is None
    assert any("host has CPUs on 2 NUMA nodes" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("topology", "host", "reason", "fix"),
    [
        (machine(cores=1), 1, "the only usable core has CPUs 0", "second core"),
        (machine(cores=1, threads=2), 1, "the only usable core has CPUs 0-1", "second core"),
        (machine(cores=4), 4, "host runs 4 torch threads and 4 physical cores", "to 3 or less"),
        (machine(cores=4, usable=frozenset({1, 2})), 2, "2 physical cores are usable", "to 1 or"),
    ],
)
def test_a_plan_that_would_harm_is_refused_with_reason_and_fix(
    topology: Topology, host: int, reason: str, fix: str
) -> None:
    plan = make_plan(topology, needs(host=host), "auto")
    assert plan.refusal is not None
    assert reason in plan.refusal.reason
    assert fix in plan.refusal.fix
    assert not plan.pins


def test_without_pinning_nobody_is_placed() -> None:
    plan = make_plan(machine(), needs(), "none")
    assert not plan.pins
    assert plan.refusal is None


def test_a_map_by_hand_is_taken_as_written_and_the_rest_gets_what_is_left() -> None:
    wish = PinningMap(host="0-3", workers={"trainer-*": "4-5", "trainer-1": 6})
    plan = make_plan(machine(cores=8), needs(host=4), wish)
    assert plan.placement(HOST).cpus == {0, 1, 2, 3}
    assert plan.placement("trainer-0").cpus == {4, 5}
    assert plan.placement("trainer-1").cpus == {6}
    assert plan.placement("watchdog").cpus == {7}


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        (PinningMap(host="0-8"), "CPU 8 of host is offline or outside"),
        (PinningMap(workers={"tariner-*": "1"}), "'tariner-*' matches no worker"),
        (PinningMap(host="0-7"), "no CPU is left for trainer-0"),
    ],
)
def test_a_map_that_cannot_be_had_names_what_is_wrong(wish: PinningMap, reason: str) -> None:
    plan = make_plan(machine(cores=8), needs(), wish)
    assert plan.refusal is not None
    assert reason in str(plan.refusal)


def test_a_map_that_puts_workers_beside_the_host_is_obeyed_and_remarked() -> None:
    wish = PinningMap(host="0", services="2", workers={"trainer-0": "0", "trainer-1": "4"})
    plan = make_plan(machine(cores=4, threads=2), needs(host=3), wish)
    text = "; ".join(plan.notes)
    assert "trainer-0 shares CPU 0 with the host" in text
    assert "trainer-1 on CPU 4 shares a physical core with the host" in text
    assert "the host runs 3 torch threads on 1 CPUs" in text


def test_a_cgroup_that_throttles_all_is_remarked() -> None:
    plan = make_plan(machine(cores=4, quota=1.5), needs(), "auto")
    assert any("allows 1.5 CPUs" in note for note in plan.notes)


def test_one_node_is_said_and_nothing_is_bound() -> None:
    plan = make_plan(machine(), needs(), "auto")
    assert {p.node for p in plan.placements.values()} == {None}
    assert any("one NUMA node" in note for note in plan.notes)
    quiet = make_plan(machine(nodes=2), needs(), "auto", NumaMode.NONE)
    assert {p.node for p in quiet.placements.values()} == {None}


topologies = st.builds(
    lambda nodes, cores, threads, picks: machine(
        nodes,
        cores,
        threads,
        frozenset(cpu for cpu in range(nodes * cores * threads) if picks >> (cpu % 61) & 1)
        or frozenset({0}),
    ),
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(1, 2),
    st.integers(1, (1 << 61) - 1),
)


@given(topologies, st.integers(1, 12), st.integers(0, 6), st.integers(1, 4), st.integers(0, 2))
def test_every_automatic_plan_keeps_workers_off_the_cores_of_the_host(
    topology: Topology, host: int, sinks: int, threads: int, monitors: int
) -> None:
    wanted = needs(host, sinks, threads, monitors)
    plan = make_plan(topology, wanted, "auto")
    if plan.refusal is not None:
        assert len(topology.usable_cores) <= max(1, host)
        assert plan.refusal.fix
        return
    mine = plan.placement(HOST).cpus
    host_cores = {core_of(topology, cpu) for cpu in mine}
    assert len(host_cores) >= host
    for need in wanted:
        placement = plan.placement(need.name)
        assert placement.cpus
        assert placement.cpus <= topology.usable
        if placement.node is not None:
            assert topology.nodes_of(placement.cpus) == {placement.node}
        if need.role != "host":
            assert host_cores.isdisjoint(core_of(topology, cpu) for cpu in placement.cpus)
    sink_cpus = [plan.placement(n.name).cpus for n in wanted if n.role == "sink"]
    pool = frozenset[int]().union(*sink_cpus)
    cores = {core_of(topology, cpu) for cpu in pool}
    if len(cores) >= sinks * threads:  # enough for all: nobody shares
        assert sum(map(len, sink_cpus)) == len(pool)


@given(topologies, st.integers(1, 4), st.integers(0, 3), st.sampled_from(["auto", "none"]))
def test_every_plan_can_be_drawn_within_its_width_and_kept(
    topology: Topology, host: int, sinks: int, mode: str
) -> None:
    wanted = needs(host, sinks)
    plan = make_plan(topology, wanted, "auto" if mode == "auto" else "none")
    text = picture(topology, plan, wanted, 80)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert (plan.refusal is None) == ("refused" not in text)
    for placement in plan.placements.values():
        assert Placement.from_dict(placement.to_dict()) == placement


def picture(
    topology: Topology,
    plan: Plan,
    wanted: list[Need],
    width: int,
    cpu: CpuPriority = CpuPriority.NORMAL,
) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None)
    console.print(draw(topology, plan, wanted, width, nice=5, cpu=cpu))
    return out.getvalue()


def test_the_picture_names_every_process_and_marks_every_cpu() -> None:
    topology = machine(cores=4)
    wanted = needs(sinks=1)
    text = picture(topology, make_plan(topology, wanted, "auto"), wanted, 100)
    for words in ("[ 0 H ]", "[ 1 A ]", "[ 2 s ]", "[ 3 H ]", "trainer-0", "monitor-0", "+5"):
        assert words in text
    text = picture(topology, make_plan(topology, wanted, "auto"), wanted, 100, CpuPriority.IDLE)
    niceness = {line.split()[1]: line for line in text.splitlines() if line.strip()[1:2] == " "}
    assert "idle" in niceness["trainer-0"]
    assert "+5" in niceness["monitor-0"]
    assert "idle" not in niceness["monitor-0"]


@pytest.mark.parametrize(
    "value", ["auto", "none", {"host": "0-3"}, {"host": [0, 2], "workers": {"a": 1}}]
)
def test_pinning_is_a_word_or_a_map(value: object) -> None:
    config = ResourcesConfig.model_validate({"pinning": value})
    assert ResourcesConfig.model_validate(config.model_dump(mode="json")) == config
    if isinstance(config.pinning, PinningMap):
        assert parse_cpus(config.pinning.host or "")


@pytest.mark.parametrize(
    "value", ["all", {"host": ""}, {"host": "x"}, {"hosts": "0"}, {"host": True}]
)
def test_another_pinning_is_an_error_of_the_configuration(value: object) -> None:
    with pytest.raises(ValidationError):
        ResourcesConfig.model_validate({"pinning": value})
