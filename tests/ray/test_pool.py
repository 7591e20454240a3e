"""`asys-run pool` on a Ray cluster: who gets a place, what is said of one who waits, and how a pool ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from asys_bench.cluster import pool, pool_actors
from asys_bench.cluster.book import Book
from asys_bench.cluster.ray_cluster import joined
from asys_bench.config import load_config

from .nodes import TwoNodes

PATIENCE_S = 240.0
"""The cluster has two nodes of one CPU and two GPUs in name each."""


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    until = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < until, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.2)
    return found


class Pool:
    """The configuration of a pool of one group, and what is done with it."""

    def __init__(self, folder: Path, ray: Any) -> None:
        self.folder, self.ray, self.told = folder, ray, list[str]()

    def spec(self, name: str, group: dict[str, Any], **more: Any) -> pool.PoolSpec:
        file = self.folder / f"{name}.yaml"
        file.write_text(
            yaml.safe_dump(
                {
                    "run": {"dir": str(self.folder / "runs"), "drain_timeout_s": 20},
                    "bus": {"backend": "mp_queue"},
                    "sinks": {"archive": {"kind": "archiver"}},
                    "pool": {"name": name, "book": str(self.folder / "book"), "groups": {"g": group}, **more},
                }
            )
        )  # fmt: skip
        return pool.PoolSpec.of(load_config(file, ["host.kind=receiver"]).config)

    def start(self, spec: pool.PoolSpec) -> pool.GroupStatus:
        (found,) = pool.start(
            self.ray, spec, lambda one: self.told.append(f"{one.state} {one.said}")
        )
        return found

    def free_gpus(self) -> float:
        return float(self.ray.available_resources().get("GPU", 0.0))

    def addresses(self) -> list[str]:
        return [one.address for one in Book.open(self.folder / "book").entries()]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    nodes = TwoNodes(tmp_path_factory.mktemp("ray"), gpus=2)
    try:
        nodes.start()
        yield nodes
    finally:
        nodes.stop()


@pytest.fixture
def ours(cluster: TwoNodes, tmp_path: Path) -> Iterator[Pool]:
    with joined(cluster.address) as ray:
        yield Pool(tmp_path, ray)


@pytest.mark.timeout(900)
def test_a_pool_starts_once_refuses_what_differs_and_gives_everything_back(ours: Pool) -> None:
    spec = ours.spec("once", {"gpus": 2})
    first = ours.start(spec)
    assert ours.addresses() == [first.address]
    assert wait_for(lambda: ours.free_gpus() == 2.0, "the gang's two GPUs are taken")
    again = ours.start(spec)
    assert (again.pid, again.actor_pid, again.starts) == (first.pid, first.actor_pid, 1)
    with pytest.raises(pool.PoolError, match="runs with another configuration: stop it first"):
        ours.start(replace(spec, idle_ttl_s=5.0))
    assert pool.status(ours.ray, "once")[0].pid == first.pid
    (ended,) = pool.stop(ours.ray, "once", spec.drain_s)
    assert ended.state == "stopped"
    assert ours.addresses() == []
    wait_for(lambda: ours.free_gpus() == 4.0, "all GPUs are free again")
    for call in (lambda: pool.status(ours.ray, "once"), lambda: pool.stop(ours.ray, "once", 1.0)):
        with pytest.raises(pool.PoolError, match="there is no pool once in this cluster"):
            call()


@pytest.mark.timeout(900)
def test_a_receiver_that_nobody_needs_leaves_and_its_pool_ends_with_it(ours: Pool) -> None:
    ours.start(ours.spec("idle", {"cpus": 1}, idle_ttl_s=3.0))

    def is_gone() -> bool:
        try:
            pool.status(ours.ray, "idle")
        except pool.PoolError:
            return True
        return False

    wait_for(is_gone, "the pool ends by itself")
    assert ours.addresses() == []
    wait_for(lambda: ours.ray.available_resources().get("CPU") == 2.0, "its CPU is given back")


@pytest.mark.timeout(900)
def test_nodes_with_other_versions_are_refused_with_both_named(ours: Pool) -> None:
    spec = ours.spec("other", {})
    with pytest.raises(
        pool.PoolError, match=r"g is refused: node .* has other versions: torch .* there, 0\.1"
    ):
        ours.start(replace(spec, versions={**spec.versions, "torch": "0.1"}))
    assert ours.addresses() == []
    pool.stop(ours.ray, "other", 5.0)


@pytest.mark.timeout(900)
def test_what_no_node_has_is_said_at_once(cluster: TwoNodes, ours: Pool) -> None:
    ours.spec("large", {"gpus": 3})
    command = [sys.executable, "-P", "-m", "asys_bench.cli.run", "pool", "--config"]
    command += [str(ours.folder / "large.yaml"), "--ray", cluster.address]
    said = ours.folder / "said"
    with said.open("wb") as output:
        started = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )
    try:
        told = (
            "it needs 3 GPUs and 1 CPUs of one node, and none of 3 has as many: Ray waits for one"
        )
        wait_for(lambda: f"g: waiting: {told}" in " ".join(said.read_text().split()), "the reason")
    finally:
        started.kill()
        started.wait()
    pool.stop(ours.ray, "large", 5.0)


@pytest.mark.timeout(900)
def test_a_gang_that_waits_says_why_and_has_its_place_when_there_is_one(
    ours: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator is in this process, so that it gives a place up after a second instead of a minute."""
    monkeypatch.setattr(pool_actors, "PLACEMENT_S", 1.0)

    class Holder:
        """Has a GPU of its node."""

        def is_there(self) -> bool:
            return True

    holders = [ours.ray.remote(num_gpus=1, num_cpus=0)(Holder).remote() for _ in range(4)]
    ours.ray.get([one.is_there.remote() for one in holders])
    spec = ours.spec("gang", {"gpus": 2})
    coordinator = pool_actors.Coordinator({**asdict(spec), "digest": spec.digest})
    try:
        why = "no node has had 2 GPUs and 1 CPUs free for 1 s"
        wait_for(lambda: coordinator.status()["g"].get("said") == why, "the reason")
        assert coordinator.status()["g"]["state"] == "waiting"
        for one in holders:
            ours.ray.kill(one)
        wait_for(lambda: coordinator.status()["g"]["state"] == "listening", "a place")
    finally:
        ended = coordinator.stop()
    assert ended["g"]["state"] == "stopped"
    wait_for(lambda: ours.free_gpus() == 4.0, "all GPUs are free again")
