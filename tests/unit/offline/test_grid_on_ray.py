"""What of a grid runs on the nodes of a Ray cluster, without one. With one: tests/ray."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from asys_bench.cluster.ray_cluster import versions
from asys_bench.offline import grid_on_ray
from asys_bench.offline.grid import read_axes, read_points, read_tasks
from asys_bench.offline.grid_on_ray import (
    MARK_FILE,
    STOP_FILE,
    NodesUnfitError,
    _most_of,
    _probe_node,
    _train,
)
from asys_bench.offline.grid_training import train_task
from asys_bench.sinks.archive import open_archive

SETS = ["sae.d_sae=24", "sae.buffer_rows=2048", "epochs=1"]
WEIGHTS = "latest/sae_weights.safetensors"


NODES = [{"CPU": 2.0}, {"CPU": 4.0, "GPU": 1.0}]


class Ray:
    """A module `ray` whose tasks run at once, here."""

    def __init__(self) -> None:
        self.wanted: list[dict] = []

    def remote(self, function):
        def options(**wanted):
            self.wanted.append(wanted)
            return SimpleNamespace(remote=lambda told: json.loads(json.dumps(function(told))))

        return SimpleNamespace(options=options)


@pytest.fixture
def on_a_node(monkeypatch):
    context = SimpleNamespace(get_node_id=lambda: "n1")
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get_runtime_context=lambda: context))
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def grid(tmp_path, on_a_node):
    def make(run, *texts, sets=()):
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        tasks = read_tasks(
            read_points(run, None, [*SETS, *sets], read_axes(texts)), open_archive(run).hooks
        )
        found = grid_on_ray.GridOnRay(Ray(), out, str(run))
        (out / MARK_FILE).write_text(found._mark)
        found._most = _most_of([{"Resources": one} for one in NODES])
        return found, tasks

    return make


def submitted(grid, tasks):
    """What the tasks gave back."""
    function = grid._ray.remote(_train)
    return [grid._submit(function, task) for task in tasks]


def test_a_task_on_a_node_is_the_training_that_would_be_here(grid, make_run, tmp_path):
    run = make_run(rows=3_000)
    ours, tasks = grid(run, "sae.k=2,4")
    found = submitted(ours, tasks)
    assert [one["state"] for one in found] == ["done", "done"]
    assert [one["threads"] for one in found] == [1, 1], "one where the plan does not say"
    for task, one in zip(tasks, found, strict=True):
        here = train_task(open_archive(run), task, tmp_path / "here")
        assert (one["fvu"], one["l0"], one["steps"]) == (here.fvu, here.l0, here.steps)
        there = (tmp_path / "out" / task.folder / WEIGHTS).read_bytes()
        assert there == (tmp_path / "here" / task.folder / WEIGHTS).read_bytes()


def test_a_task_asks_for_the_cpus_of_its_threads_and_for_a_gpu_where_its_device_is_one(
    grid, make_run
):
    run = make_run(rows=50)
    ours, tasks = grid(run, "sae.threads=1,3", "device=cpu,cuda,auto")
    asked = [ours._demand(task) for task in tasks]
    assert [one["CPU"] for one in asked] == [1, 1, 1, 3, 3, 3]
    assert [one["GPU"] for one in asked] == [0, 1, 1, 0, 1, 1]
    ours._most = _most_of([{"Resources": {"CPU": 2.0}}])
    assert ours._demand(tasks[2])["GPU"] == 0, "auto: no node has one"
    assert "3 CPU; no node has more than 2" in ours.waits_for(tasks)
    assert "1 GPU; no node has more than 0" in ours.waits_for(tasks[:2])
    assert ours.waits_for(tasks[:1]) is None


def test_a_task_that_begins_after_the_grid_was_stopped_trains_nothing(grid, make_run, tmp_path):
    ours, tasks = grid(make_run(rows=500), "sae.k=2")
    (tmp_path / "out" / STOP_FILE).touch()
    (found,) = submitted(ours, tasks)
    assert found["state"] == "stopped"
    assert not (tmp_path / "out" / tasks[0].folder).exists()


def test_a_node_says_what_it_lacks(make_run, tmp_path):
    run, out = make_run(rows=50), tmp_path / "out"
    out.mkdir()
    assert "does not see" in str(_probe_node(str(run), str(out), "mark", versions())[1])
    (out / MARK_FILE).write_text("another")
    assert "another" in str(_probe_node(str(run), str(out), "mark", versions())[1])
    (out / MARK_FILE).write_text("mark")
    assert _probe_node(str(run), str(out), "mark", versions()) == (str(run), None)
    assert "no archive in" in str(_probe_node(str(tmp_path), str(out), "mark", versions())[1])
    ours = {**versions(), "torch": "1.0"}
    assert "torch" in str(_probe_node(str(run), str(out), "mark", ours)[1])


def test_a_node_that_came_later_and_does_not_fit_fails_its_task_with_the_reason(
    grid, make_run, tmp_path
):
    ours, tasks = grid(make_run(rows=50), "sae.k=2")
    (tmp_path / "out" / MARK_FILE).unlink()
    with pytest.raises(NodesUnfitError, match="does not see"):
        submitted(ours, tasks)
