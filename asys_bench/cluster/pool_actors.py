"""What of the pool runs in Ray's processes: the coordinator, and an actor for each receiver.

Neither touches a packet. Both are made again by Ray with the arguments that they were made with first, so
nothing that they know is kept anywhere else.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from asys_bench.cluster.accounts import CLUSTER_DIR, RECEIVER_FILE
from asys_bench.cluster.ray_cluster import NAMESPACE, living_nodes, version_problem, versions
from asys_bench.cluster.receiver_process import HUNG_S, ReceiverProcess, State, read_status
from asys_bench.system.files.atomic import make_private_folder, replace_file

COORDINATOR, RECEIVER, GANG = "asys-pool-{}", "asys-pool-{}/{}", "asys-pool-{}/{}/gpus"
"""Names of actors, and of the placement group of a receiver with several GPUs."""
FOLDER, STATUS_FILE = "pool", f"{CLUSTER_DIR}/{RECEIVER_FILE}"
"""In `run.dir`: configurations and logs of the receivers. In a receiver's run: what it says of itself."""
TICK_S, ANSWER_S, PLACEMENT_S = 2.0, 5.0, 60.0
WAITING, REFUSED = "waiting", "refused"


def receiver_name(pool: str, group: str) -> str:
    """Of a receiver in the address book, and of its run."""
    return f"{pool}.{group}"


class Coordinator:
    """Keeps one actor per group."""

    def __init__(self, spec: dict[str, Any]) -> None:
        import ray

        self._ray: Any = ray
        self._spec, self._name = spec, spec["name"]
        self._ended: set[str] = set()
        self._said: dict[str, str] = {}
        self._gang_since: dict[str, float] = {}
        self._asked: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        threading.Thread(target=self._tend, name="asys-pool", daemon=True).start()

    def digest(self) -> str:
        return str(self._spec["digest"])

    def ensure(self) -> None:
        """Have an actor for every group, also of one whose receiver has left of its own accord."""
        for group in self._spec["groups"]:
            self._release(group)
            self._ended.discard(group)
            self._ensure(group)

    def status(self) -> dict[str, dict[str, Any]]:
        """Of every group."""
        asked = {group: self._ask(group) for group in self._spec["groups"]}
        known = [reference for reference in asked.values() if reference is not None]
        if known:
            self._ray.wait(known, num_returns=len(known), timeout=ANSWER_S)
        return {group: self._told(group, reference) for group, reference in asked.items()}

    def stop(self) -> dict[str, dict[str, Any]]:
        """Have all receivers drain and leave, and end their actors. Idempotent."""
        self._stopping.set()
        within_s = float(self._spec["drain_s"]) + ANSWER_S
        with self._lock:
            actors = {group: self._actor(group) for group in self._spec["groups"]}
            asked = {
                group: actor.stop.remote(within_s)
                for group, actor in actors.items()
                if actor is not None
            }
            if asked:
                self._ray.wait(
                    list(asked.values()), num_returns=len(asked), timeout=within_s + ANSWER_S
                )
            found = {group: self._told(group, asked.get(group)) for group in actors}
            for group, actor in actors.items():
                if actor is not None:
                    self._ray.kill(actor, no_restart=True)
                self._remove_gang(group)
        return found

    def _tend(self) -> None:
        """Make again what is gone, and let go of who has left of its own accord."""
        while not self._stopping.wait(TICK_S):
            for group in self._spec["groups"]:
                with suppress(self._ray.exceptions.RayError):
                    self._ensure(group)
                    self._release(group)
            if self._ended >= self._spec["groups"].keys():
                self._stopping.set()
                me = self._ray.get_actor(COORDINATOR.format(self._name), namespace=NAMESPACE)
                self._ray.kill(me, no_restart=True)

    def _ensure(self, group: str) -> None:
        with self._lock:
            if self._stopping.is_set() or group in self._ended or self._actor(group) is not None:
                return
            wanted = self._spec["groups"][group]
            options: dict[str, Any] = {"scheduling_strategy": "SPREAD"}
            if wanted["gpus"] > 1:
                gang = self._gang(group, wanted)
                if gang is None:
                    return
                options["scheduling_strategy"] = gang
            self._ray.remote(Receiver).options(
                name=RECEIVER.format(self._name, group),
                namespace=NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                max_restarts=-1,
                max_task_retries=-1,
                max_concurrency=2,
                num_cpus=wanted["cpus"],
                num_gpus=wanted["gpus"],
                **options,
            ).remote(self._spec, group)

    def _gang(self, group: str, wanted: Mapping[str, Any]) -> Any:
        """Where all GPUs of a group are at once; None: there is no such place yet."""
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        name = GANG.format(self._name, group)
        try:
            found = self._ray.util.get_placement_group(name)
        except ValueError:
            bundle = {"CPU": wanted["cpus"], "GPU": wanted["gpus"]}
            bundle = {kind: number for kind, number in bundle.items() if number}
            found = placement_group([bundle], "STRICT_PACK", name=name, lifetime="detached")
            self._gang_since[group] = time.monotonic()
        if found.wait(timeout_seconds=1):
            self._said.pop(group, None)
            return PlacementGroupSchedulingStrategy(found, placement_group_bundle_index=0)
        waited_s = time.monotonic() - self._gang_since.setdefault(group, time.monotonic())
        if waited_s > PLACEMENT_S:
            self._remove_gang(
                group
            )  # what it waits with is given back before it is asked for again
            self._said[group] = (
                f"no node has had {wanted['gpus']:g} GPUs and {wanted['cpus']:g} CPUs free for "
                f"{PLACEMENT_S:g} s"
            )
        return None

    def _remove_gang(self, group: str) -> None:
        if self._spec["groups"][group]["gpus"] > 1:
            with suppress(ValueError):
                found = self._ray.util.get_placement_group(GANG.format(self._name, group))
                self._ray.util.remove_placement_group(found)

    def _release(self, group: str) -> None:
        """End the actor of a receiver that has left of its own accord."""
        actor, reference = self._actor(group), self._ask(group)
        if actor is None or reference is None:
            return
        if self._told(group, reference, wait_s=ANSWER_S)["state"] == State.ENDED:
            self._ended.add(group)
            self._ray.kill(actor, no_restart=True)
            self._remove_gang(group)

    def _ask(self, group: str) -> Any:
        """For a receiver's state: one question at a time, which an actor without a place answers when it
        has one."""
        actor, asked = self._actor(group), self._asked.get(group)
        if actor is None:
            return None
        if asked is None or self._ray.wait([asked], timeout=0)[0]:
            asked = self._asked[group] = actor.state.remote()
        return asked

    def _actor(self, group: str) -> Any:
        try:
            return self._ray.get_actor(RECEIVER.format(self._name, group), namespace=NAMESPACE)
        except ValueError:
            return None

    def _told(self, group: str, reference: Any, wait_s: float = 0.0) -> dict[str, Any]:
        if group in self._ended:
            return {"state": State.ENDED.value}
        why = ""
        if reference is not None:
            try:
                found: dict[str, Any] = self._ray.get(reference, timeout=wait_s)
                return found
            except self._ray.exceptions.GetTimeoutError:
                pass
            except self._ray.exceptions.RayError as error:
                why = " ".join(str(error).split())[:300]
        return {"state": WAITING, "said": why or self._why_it_waits(group)}

    def _why_it_waits(self, group: str) -> str:
        wanted = self._spec["groups"][group]
        needs = {"CPU": wanted["cpus"], "GPU": wanted["gpus"]}
        nodes = [node["Resources"] for node in living_nodes(self._ray)]
        if any(all(node.get(kind, 0.0) >= n for kind, n in needs.items()) for node in nodes):
            return self._said.get(group, "Ray has no place for it yet")
        return (
            f"it needs {needs['GPU']:g} GPUs and {needs['CPU']:g} CPUs of one node, and none of "
            f"{len(nodes)} has as many: Ray waits for one"
        )


class Receiver:
    """Looks after one receiver."""

    def __init__(self, spec: dict[str, Any], group: str) -> None:
        name = receiver_name(spec["name"], group)
        self._run_dir = Path(spec["run_dir"]) / name
        self._problem = version_problem(versions(), spec["versions"], socket.gethostname())
        self._process: ReceiverProcess | None = None
        if self._problem is None:
            self._process = _process_of(spec, group, name, self._run_dir)

    def state(self) -> dict[str, Any]:
        about: dict[str, Any] = {"node": socket.gethostname(), "actor_pid": os.getpid()}
        if self._process is None:
            return {**about, "state": REFUSED, "said": self._problem}
        found = asdict(self._process.state())
        found.pop("code")
        figures = read_status(self._run_dir / STATUS_FILE, self._run_dir)
        return {**about, **found, "state": str(found["state"]), "figures": figures}

    def stop(self, within_s: float) -> dict[str, Any]:
        """Have it drain and leave; after `within_s` it is killed."""
        if self._process is not None:
            self._process.stop(within_s)
        return self.state()


def _process_of(spec: Mapping[str, Any], group: str, name: str, run_dir: Path) -> ReceiverProcess:
    from ray.util import get_node_ip_address

    folder = Path(spec["run_dir"]) / FOLDER
    make_private_folder(folder)
    config = folder / f"{name}.yaml"
    replace_file(config, spec["config"].encode(), sync=False)
    command = list(spec["command"]) or [sys.executable, "-P", "-m", "asys_bench.cli.run", "receive"]
    listen = f"{get_node_ip_address()}:0" if spec["keys"] else "127.0.0.1:0"
    command += ["--config", str(config), "--listen", listen, "--book", spec["book"], "--name", name]
    command += ["--set", f"run.dir={spec['run_dir']}"]
    if spec["keys"]:
        command += ["--keys", spec["keys"]]
    if spec["idle_ttl_s"] is not None:
        command += ["--set", f"host.options.receiver.idle_ttl_s={spec['idle_ttl_s']}"]
    command += ["--hooks", *spec["groups"][group]["hooks"]]
    # Launchers' variables (RAY_LOCAL_RANK, ...) would tell the receiver that it is a rank of a job.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    cwd = spec["cwd"] if os.path.isdir(spec["cwd"]) else None
    return ReceiverProcess(
        command,
        folder / f"{name}.log",
        run_dir / STATUS_FILE,
        environment=environment,
        cwd=cwd,
        # Its file is not rewritten while its workers start, with the first forwarder, nor while they drain.
        hung_s=HUNG_S + max(float(spec["startup_s"]), float(spec["drain_s"])),
    )
