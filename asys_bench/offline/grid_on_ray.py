"""The tasks of a grid on a Ray cluster: each where Ray finds CPUs or a GPU for it.

An SAE trains with `sae.threads` threads, with one where that is not set, and takes as many of its node's
CPUs: the same SAEs come out as without Ray under the same number of threads. Its node dies: Ray starts it
elsewhere, and it goes on from its checkpoint. So all nodes must see the grid's folder, and the archive's,
unless that is given by the URI of its copy: then one process of each node holds the copy's folder, and its
tasks fetch every shard once. Of a folder the kernel keeps what one task has read for the others.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from asys_bench.cluster.ray_cluster import living_nodes, on_node, said, version_problem, versions
from asys_bench.contracts.run_files import ARCHIVE_DIR
from asys_bench.offline.grid import Point, Task
from asys_bench.offline.grid_results import FAILED, STOPPED, GridResult
from asys_bench.offline.plan import Job, OfflinePlan
from asys_bench.system.files.atomic import replace_file
from asys_bench.system.files.below import read_file

STOP_FILE, MARK_FILE = ".stop", ".grid"
MOST_MARK_BYTES = 64
TRIES = 3
"""Starts of a task whose process or node dies."""
PROBE_S, POLL_S = 60.0, 0.5


class NodesUnfitError(RuntimeError):
    """Nodes cannot train; says which and why."""


class GridOnRay:
    """One grid. source: the archive as the nodes get at it, a run's folder or the URI of its copy."""

    def __init__(self, ray: Any, out: Path, source: str) -> None:
        self._ray, self._out, self._source = ray, out.resolve(), source
        self._mark = secrets.token_hex(8)
        self._holders: list[Any] = []
        self._most: dict[str, float] = {}
        """Of a resource, on one node."""
        self._folders: dict[str, str] = {}
        """Of the copy, by node."""

    def __enter__(self) -> GridOnRay:
        """Raises NodesUnfitError, OSError."""
        with suppress(FileNotFoundError):
            (self._out / STOP_FILE).unlink()
        replace_file(self._out / MARK_FILE, self._mark.encode(), sync=True)
        self._probe()
        return self

    def __exit__(self, *_: object) -> None:
        for holder in self._holders:
            self._ray.kill(holder)
        for name in (STOP_FILE, MARK_FILE):
            with suppress(OSError):
                (self._out / name).unlink()

    def waits_for(self, tasks: Sequence[Task]) -> str | None:
        """What no node has, and what Ray would wait for; None: every task fits some node."""
        demands = [self._demand(task) for task in tasks]
        for kind, most in self._most.items():
            wanted = max(demand[kind] for demand in demands)
            if wanted > most:
                return f"a task needs {wanted:g} {kind}; no node has more than {most:g}: Ray waits for one"
        return None

    def run(self, tasks: Sequence[Task], should_stop: Callable[[], bool]) -> Iterator[GridResult]:
        """Results as they come, each task's once."""
        function = self._ray.remote(_train)
        waiting = {self._submit(function, task): task for task in tasks}
        told = False
        while waiting:
            if should_stop() and not told:
                told = True
                (self._out / STOP_FILE).touch()
            ready, _ = self._ray.wait(list(waiting), num_returns=1, timeout=POLL_S)
            for reference in ready:
                task = waiting.pop(reference)
                yield self._result(task, reference)

    def _demand(self, task: Task) -> dict[str, float]:
        device = task.point.plan.device
        on_gpu = self._most["GPU"] > 0 if device == "auto" else device != "cpu"
        return {"CPU": float(_threads(task.job)), "GPU": float(on_gpu)}

    def _submit(self, function: Any, task: Task) -> Any:
        demand = self._demand(task)
        options = function.options(
            num_cpus=demand["CPU"],
            num_gpus=demand["GPU"],
            max_retries=TRIES - 1,
            scheduling_strategy="SPREAD",
            name=f"asys-grid {task.folder}",
        )
        return options.remote(
            {
                "plan": task.point.plan.model_dump(mode="json"),
                "values": [list(pair) for pair in task.point.values],
                "folder": task.point.folder,
                "label": task.job.label,
                "out": str(self._out),
                "mark": self._mark,
                "source": self._source,
                "folders": self._folders,
                "versions": versions(),
            }
        )

    def _result(self, task: Task, reference: Any) -> GridResult:
        try:
            values = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return GridResult.without(task, FAILED, said(error))
        return GridResult(**{**values, "hooks": tuple(values["hooks"])})

    def _probe(self) -> None:
        """Ask every node whether it can train; of a copy, have it held there."""
        ray, remote = self._ray, "://" in self._source
        nodes = living_nodes(ray)
        self._most = _most_of(nodes)
        asked: dict[Any, str] = {}
        for node in nodes:
            where = {"num_cpus": 0, "scheduling_strategy": on_node(ray, node["NodeID"])}
            if remote:
                holder = ray.remote(_CopyHolder).options(**where).remote(self._source)
                self._holders.append(holder)
                asked[holder.folder.remote(str(self._out), self._mark, versions())] = node["NodeID"]
            else:
                probe = ray.remote(_probe_node).options(**where, max_retries=0)
                found = probe.remote(self._source, str(self._out), self._mark, versions())
                asked[found] = node["NodeID"]
        names = {node["NodeID"]: node["NodeManagerHostname"] for node in nodes}
        ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=PROBE_S)
        problems = [f"node {names[asked[one]]} gave no answer in {PROBE_S:g} s" for one in late]
        for one in ready:
            try:
                folder, problem = ray.get(one)
            except ray.exceptions.RayError as error:
                folder, problem = "", f"node {names[asked[one]]}: {said(error)}"
            self._folders[asked[one]] = folder
            problems += [problem] if problem else []
        if problems:
            raise NodesUnfitError("\n".join(sorted(problems)))


def _most_of(nodes: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What the node with the most of it has, of CPUs and of GPUs."""
    return {
        kind: max((float(node["Resources"].get(kind, 0.0)) for node in nodes), default=0.0)
        for kind in ("CPU", "GPU")
    }


def _threads(job: Job) -> int:
    return job.config.threads or 1


# What runs on the nodes.


class _CopyHolder:
    """Keeps a copy's folder on its node for the tasks there."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def folder(self, out: str, mark: str, ours: dict[str, str]) -> tuple[str, str | None]:
        from asys_bench.store.mirror import CopyError, local_folder

        problem = _unfit(out, mark, ours)
        if problem is not None:
            return "", problem
        try:
            return str(local_folder(self._uri)), None
        except CopyError as error:
            return "", f"node {socket.gethostname()}: {error}"


def _probe_node(source: str, out: str, mark: str, ours: dict[str, str]) -> tuple[str, str | None]:
    problem = _unfit(out, mark, ours)
    if problem is None and not (Path(source) / ARCHIVE_DIR).is_dir():
        problem = (
            f"node {socket.gethostname()} has no archive in {source}: use a folder that all nodes see, "
            "or a copy's URI (asys-run upload makes one)"
        )
    return source, problem


def _unfit(out: str, mark: str, ours: dict[str, str]) -> str | None:
    node = socket.gethostname()
    problem = version_problem(versions(), ours, node)
    if problem is not None:
        return problem
    try:
        seen = read_file(Path(out) / MARK_FILE, MOST_MARK_BYTES).decode(errors="replace")
    except OSError as error:
        seen = str(error)
    if seen != mark:
        return (
            f"node {node} does not see {out} as this machine does ({seen[:200]}): "
            "name a folder that all nodes see with --out"
        )
    return None


def _train(told: dict[str, Any]) -> dict[str, Any]:
    """One task."""
    import ray

    from asys_bench.offline.grid_training import train_task
    from asys_bench.sae.training.device import prepare_process
    from asys_bench.sinks.archive import ArchiveError, open_archive
    from asys_bench.store.mirror import CopyError, local_folder, remount

    out, plan = Path(told["out"]), OfflinePlan.model_validate(told["plan"])
    if plan.device.startswith("cuda"):
        plan = plan.model_copy(update={"device": "cuda"})  # Ray shows the task one GPU
    values = tuple((path, value) for path, value in told["values"])
    point = Point(values, told["folder"], plan)
    problem = _unfit(told["out"], told["mark"], told["versions"])
    if problem is not None:
        raise NodesUnfitError(problem)
    folder = told["folders"].get(ray.get_runtime_context().get_node_id()) or told["source"]
    try:
        remount(Path(folder))
        archive = open_archive(local_folder(folder), plan.repeats)
    except (ArchiveError, CopyError) as error:
        raise NodesUnfitError(f"node {socket.gethostname()}: {error}") from None
    job = next(job for job in plan.jobs(archive.hooks) if job.label == told["label"])
    own = job.config.model_copy(update={"threads": _threads(job)})
    task = Task(point, replace(job, config=own))
    stop = out / STOP_FILE
    if stop.exists():
        return asdict(GridResult.without(task, STOPPED))
    prepare_process()
    return asdict(train_task(archive, task, out, should_stop=stop.exists))
