"""A Ray cluster as our commands meet it: joined for as long as a command takes, from one of its nodes.

The host of a run never comes here: an idle driver ends 62 s after its cluster's control store (GCS), and
`ray.init` replaces signal handlers. A command of ours may do both: its handlers are put back at once.

Nothing is installed on a node for us (no `runtime_env`): asys-i, torch and Python there must be those of
the command (`versions`, `version_problem`).
"""

from __future__ import annotations

import platform
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import asys_bench

NAMESPACE = "asys"
"""Of named actors."""
INSTALL = "pip install 'asys-i[ray]'"
_HANDLED = (signal.SIGINT, signal.SIGTERM)
REACH_S = 10.0
"""Where nobody listens, Ray itself tries for minutes."""


class RayUnavailableError(RuntimeError):
    """Ray cannot be used; says why and what to do."""


@contextmanager
def joined(address: str) -> Iterator[Any]:
    """The module `ray`, connected to the cluster at `address` (`auto`: the one that this machine is a
    node of); left at the end. A cluster that has been joined already stays so.

    Raises:
        RayUnavailableError: Ray is not installed, or there is no such cluster.
    """
    ray = _module()
    if ray.is_initialized():
        yield ray
        return
    if "://" in address:
        raise RayUnavailableError(
            f"--ray {address}: clients (ray://) are not supported; run the command on a node of the "
            "cluster (`ray job submit` does), with --ray auto"
        )
    _reach(address)
    before = _handlers()
    try:
        ray.init(
            address=address,
            namespace=NAMESPACE,
            log_to_driver=False,
            configure_logging=False,
        )
    except (ConnectionError, OSError, RuntimeError, ValueError, AssertionError) as error:
        with suppress(Exception):
            ray.shutdown()
        raise _no_cluster(address, error) from None
    finally:
        _put_back(before)
    try:
        yield ray
    finally:
        before = _handlers()
        ray.shutdown()
        _put_back(before)


def versions() -> dict[str, str]:
    """What must be the same on every node."""
    import torch

    return {
        "asys-i": asys_bench.__version__,
        "torch": str(torch.__version__),
        "Python": platform.python_version(),
    }


def version_problem(theirs: Mapping[str, str], ours: Mapping[str, str], node: str) -> str | None:
    """What differs between a node and the command, both versions named."""
    differing = [
        f"{name} {theirs.get(name, 'none')} there, {version} here"
        for name, version in ours.items()
        if theirs.get(name) != version
    ]
    if not differing:
        return None
    return f"node {node} has other versions: {'; '.join(differing)}; install the same on every node"


def on_node(ray: Any, node_id: str) -> Any:
    """The scheduling strategy of what must run on this node and no other."""
    return ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node_id, soft=False)


def living_nodes(ray: Any) -> list[dict[str, Any]]:
    """As `ray.nodes()` tells of them."""
    return [node for node in ray.nodes() if node["Alive"]]


def said(error: BaseException) -> str:
    """The last line of what Ray says: the others are the trace of a process that is elsewhere."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _module() -> Any:
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise RayUnavailableError(f"--ray needs Ray: {INSTALL} ({error})") from None
    return ray


def _reach(address: str) -> None:
    """Raises RayUnavailableError: nobody listens at host:port; of `auto` Ray knows the address."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_S).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: BaseException) -> RayUnavailableError:
    return RayUnavailableError(
        f"--ray {address}: {_first_line(error)}; `ray status` says whether there is a cluster, "
        "`ray start --head` makes one, and the command must run on a node of it"
    )


def _handlers() -> dict[int, Any]:
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.getsignal(number) for number in _HANDLED}


def _put_back(before: Mapping[int, Any]) -> None:
    for number, handler in before.items():
        if handler is not None and signal.getsignal(number) != handler:
            signal.signal(number, handler)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
