"""The machine's shape, read from copies of /sys and /proc of machines that are not here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asys_bench.placement.topology import read_topology
from asys_bench.system.cpu_lists import format_cpus, parse_cpus


@dataclass(frozen=True)
class Machine:
    """`nodes` NUMA nodes (one socket each) of `cores` cores with `threads` hardware threads."""

    nodes: int = 1
    cores: int = 4
    threads: int = 1
    memory_kib: int = 8 << 20

    @property
    def cpus(self) -> int:
        return self.nodes * self.cores * self.threads

    def siblings(self, cpu: int) -> list[int]:
        """Linux's usual numbering: first threads of all cores, then the second ones."""
        core = cpu % (self.nodes * self.cores)
        return [core + thread * self.nodes * self.cores for thread in range(self.threads)]

    def node(self, cpu: int) -> int:
        return cpu % (self.nodes * self.cores) // self.cores

    def write(self, root: Path) -> Path:
        base = root / "sys/devices/system"
        for cpu in range(self.cpus):
            folder = base / f"cpu/cpu{cpu}/topology"
            folder.mkdir(parents=True)
            (folder / "core_cpus_list").write_text(format_cpus(self.siblings(cpu)) + "\n")
            (folder / "physical_package_id").write_text(f"{self.node(cpu)}\n")
        (base / "cpu/online").write_text(f"0-{self.cpus - 1}\n")
        for node in range(self.nodes):
            folder = base / f"node/node{node}"
            folder.mkdir(parents=True)
            mine = [cpu for cpu in range(self.cpus) if self.node(cpu) == node]
            (folder / "cpulist").write_text(format_cpus(mine) + "\n")
            (folder / "meminfo").write_text(f"Node {node} MemTotal:       {self.memory_kib} kB\n")
        return root


def cgroup(root: Path, path: str = "job", **files: str) -> None:
    """A cgroup of version 2; file names with `__` for a dot."""
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/cgroup").write_text(f"0::/{path}\n")
    folder = root / "sys/fs/cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content + "\n")


def test_hardware_threads_of_a_core_are_together(tmp_path: Path) -> None:
    topology = read_topology(Machine(cores=4, threads=2).write(tmp_path), range(8))
    assert [core.cpus for core in topology.cores] == [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert topology.usable == frozenset(range(8))
    assert topology.quota_cpus is None


def test_nodes_have_their_cores_and_their_memory(tmp_path: Path) -> None:
    topology = read_topology(Machine(nodes=2, cores=3).write(tmp_path), range(6))
    assert topology.nodes == (0, 1)
    assert [core.cpus[0] for core in topology.cores if core.node == 1] == [3, 4, 5]
    assert {core.package for core in topology.cores if core.node == 1} == {1}
    assert topology.memory_bytes == {0: 8 << 30, 1: 8 << 30}
    assert topology.nodes_of([0, 5]) == frozenset({0, 1})


def test_only_what_mask_and_cpuset_both_allow_is_usable(tmp_path: Path) -> None:
    root = Machine(cores=8).write(tmp_path)
    cgroup(
        root, cpuset__cpus__effective="2-5", cpuset__mems__effective="0", cpu__max="150000 100000"
    )
    topology = read_topology(root, [0, 3, 4, 7])
    assert topology.usable == frozenset({3, 4})
    assert [core.cpus for core in topology.usable_cores] == [(3,), (4,)]
    assert topology.usable_nodes == frozenset({0})
    assert topology.quota_cpus == 1.5


def test_a_cgroup_of_version_1_is_found_by_its_controllers(tmp_path: Path) -> None:
    root = Machine(cores=4).write(tmp_path)
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("4:cpu,cpuacct:/job\n3:cpuset:/job\n")
    cpuset, cpu = root / "sys/fs/cgroup/cpuset/job", root / "sys/fs/cgroup/cpu/job"
    cpuset.mkdir(parents=True)
    cpu.mkdir(parents=True)
    (cpuset / "cpuset.cpus").write_text("1-2\n")
    (cpu / "cpu.cfs_quota_us").write_text("50000\n")
    (cpu / "cpu.cfs_period_us").write_text("100000\n")
    topology = read_topology(root, range(4))
    assert topology.usable == frozenset({1, 2})
    assert topology.quota_cpus == 0.5


def test_an_unlimited_quota_is_no_limit(tmp_path: Path) -> None:
    root = Machine().write(tmp_path)
    cgroup(root, cpu__max="max 100000")
    assert read_topology(root, range(4)).quota_cpus is None


def test_a_tree_with_nothing_in_it_gives_a_core_per_usable_cpu(tmp_path: Path) -> None:
    topology = read_topology(tmp_path, [0, 1])
    assert [core.cpus for core in topology.cores] == [(0,), (1,)]
    assert topology.nodes == (0,)
    assert topology.memory_bytes == {}


def test_damaged_files_are_as_good_as_missing(tmp_path: Path) -> None:
    root = Machine(cores=2).write(tmp_path)
    (root / "sys/devices/system/cpu/cpu0/topology/core_cpus_list").write_text("zero to one\n")
    (root / "sys/devices/system/cpu/cpu0/topology/physical_package_id").write_bytes(b"\xff")
    assert [core.cpus for core in read_topology(root, range(2)).cores] == [(0,), (1,)]


def test_this_machine_is_read_as_the_kernel_schedules_it() -> None:
    topology = read_topology()
    assert topology.usable == frozenset(os.sched_getaffinity(0))
    assert topology.usable_cores


@given(st.frozensets(st.integers(0, 500), max_size=60))
def test_a_cpu_list_reads_back_as_what_was_written(cpus: frozenset[int]) -> None:
    assert parse_cpus(format_cpus(cpus)) == cpus


@pytest.mark.parametrize("text", ["a", "1-", "-1", "3-1", "0,,x", "0-99999", "1.5", "0-1-2"])
def test_what_is_no_cpu_list_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"CPU|range"):
        parse_cpus(text)
