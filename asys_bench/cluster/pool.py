"""The pool: receivers on a Ray cluster, as the commands of `asys-run pool` start, see and stop them.

A detached coordinator makes a detached actor for each group and makes it again where it is gone; an actor
looks after one receiver, a process (`receiver_process`). Every call may be made twice. What travels through
Ray is a specification of some kilobytes; packets never do.

Ray starts an actor again whose process or node has died, elsewhere if need be. The receiver goes on from
its run directory where the new node sees it, and begins a new one where it does not. The control store
(GCS) dies and does not come back: its nodes end, with them the actors, and the receivers drain and leave.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from asys_bench.cluster.book import place_problem
from asys_bench.cluster.pool_actors import COORDINATOR, REFUSED, WAITING, Coordinator
from asys_bench.cluster.ray_cluster import NAMESPACE, said, versions
from asys_bench.cluster.receiver_process import State
from asys_bench.config import MasterConfig, dump_yaml

START_S, CALL_S, DRAIN_S = 120.0, 30.0, 60.0
"""For all receivers to listen; for an answer of the coordinator; for receivers to write and leave."""
POLL_S = 0.25
REFUSED_STARTS = 3
"""Starts after which a receiver that never listened is told to whoever waits."""


class PoolError(RuntimeError):
    """The pool cannot be started, asked or stopped; says why and what to do."""


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """What a pool is made from. command: words before the receiver's own options; empty: `asys-run
    receive` of the node's Python. digest: of everything here but `versions`."""

    name: str
    config: str
    groups: Mapping[str, Mapping[str, Any]]
    book: str
    keys: str
    run_dir: str
    cwd: str
    idle_ttl_s: float | None
    drain_s: float
    startup_s: float
    versions: Mapping[str, str]
    command: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: MasterConfig, command: tuple[str, ...] = ()) -> PoolSpec:
        """Of a configuration. Raises PoolError: it names no address book, or none that can be."""
        pool = config.pool
        if pool.book is None:
            raise PoolError("pool.book is missing: the hosts find the receivers in it")
        if (why := place_problem(pool.book)) is not None:
            raise PoolError(f"pool.book: {why}")
        return cls(
            pool.name,
            dump_yaml(config),
            {name: group.model_dump(mode="json") for name, group in pool.groups.items()},
            pool.book if "://" in pool.book else os.path.abspath(pool.book),
            os.path.abspath(pool.keys) if pool.keys is not None else "",
            os.path.abspath(config.run.dir),
            os.getcwd(),
            pool.idle_ttl_s,
            config.run.drain_timeout_s,
            config.watchdog.startup_timeout_s,
            versions(),
            command,
        )

    @property
    def digest(self) -> str:
        told = {name: value for name, value in asdict(self).items() if name != "versions"}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class GroupStatus:
    """A receiver as the coordinator sees it. state: of the receiver, or `waiting` for a place in the
    cluster. figures: what the receiver itself says (`cluster/receiver.json`)."""

    group: str
    state: str
    node: str = ""
    address: str = ""
    pid: int = 0
    actor_pid: int = 0
    starts: int = 0
    said: str = ""
    figures: Mapping[str, Any] | None = None


def start(ray: Any, spec: PoolSpec, tell: Callable[[GroupStatus], None]) -> list[GroupStatus]:
    """Start the pool, or see that it is there; returns when every receiver listens. `tell` hears of each
    receiver whose state has changed, or what it waits for.

    Raises:
        PoolError: there is one of this name that was made from something else, or a receiver does not
            come up. What has come up stays.
    """
    coordinator = (
        ray.remote(Coordinator)
        .options(
            name=COORDINATOR.format(spec.name),
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_task_retries=-1,
            num_cpus=0,
            max_concurrency=8,
        )
        .remote({**asdict(spec), "digest": spec.digest})
    )
    if _call(ray, coordinator.digest.remote(), START_S) != spec.digest:
        raise PoolError(
            f"the pool {spec.name} runs with another configuration: stop it first (asys-run pool --stop)"
        )
    _call(ray, coordinator.ensure.remote(), START_S)
    until = time.monotonic() + START_S
    told: dict[str, str] = {}
    while True:
        found = _statuses(_call(ray, coordinator.status.remote(), CALL_S))
        for one in found:
            news = f"{one.state} {one.said}" if one.state == WAITING else one.state
            if told.get(one.group) != news:
                told[one.group] = news
                tell(one)
        late = [one for one in found if one.state != State.LISTENING]
        if not late:
            return found
        given_up = [one for one in late if one.state == REFUSED or one.starts >= REFUSED_STARTS]
        if given_up or time.monotonic() > until:
            words = "; ".join(f"{one.group} is {one.state}: {one.said}" for one in given_up or late)
            raise PoolError(f"not every receiver listens: {words}; the pool goes on trying")
        time.sleep(POLL_S)


def status(ray: Any, name: str) -> list[GroupStatus]:
    """Every receiver of the pool. Raises PoolError: there is no such pool."""
    return _statuses(_call(ray, _coordinator(ray, name).status.remote(), CALL_S))


def stop(ray: Any, name: str, drain_s: float) -> list[GroupStatus]:
    """Have every receiver drain and leave; how each one ended. Raises PoolError: there is no such pool."""
    coordinator = _coordinator(ray, name)
    ended = _statuses(_call(ray, coordinator.stop.remote(), drain_s + DRAIN_S))
    ray.kill(coordinator, no_restart=True)
    return ended


def _coordinator(ray: Any, name: str) -> Any:
    try:
        return ray.get_actor(COORDINATOR.format(name), namespace=NAMESPACE)
    except ValueError:
        raise PoolError(f"there is no pool {name} in this cluster") from None


def _call(ray: Any, reference: Any, within_s: float) -> Any:
    try:
        return ray.get(reference, timeout=within_s)
    except ray.exceptions.GetTimeoutError:
        raise PoolError(f"the pool's coordinator gave no answer in {within_s:g} s") from None
    except ray.exceptions.RayError as error:
        raise PoolError(f"the pool's coordinator: {said(error)}") from None


def _statuses(found: Mapping[str, Mapping[str, Any]]) -> list[GroupStatus]:
    return [GroupStatus(group=group, **about) for group, about in found.items()]
