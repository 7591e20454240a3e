"""bus_peer_*: our bus against a peer's transport, producer and consumer processes, in every round.

`transports.py` holds the contenders: public APIs only, every byte read by the consumer, counts checked.
Who goes first alternates with the round's seed. A peer
that is not installed makes the case unavailable, with the reason, and fails nothing.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import Field

from asys_bench.contracts.bus import BusPlugin
from asys_bench.contracts.scenario import (
    MetricKind,
    MetricSpec,
    RoundContext,
    ScenarioError,
    ScenarioOptions,
    ScenarioPlugin,
)
from asys_bench.registry import PluginError, registry

TRANSPORTS = Path(__file__).with_name("transports.py")
PEERS: Mapping[str, tuple[str, str]] = {
    "mp_queue": ("mp.Queue", "multiprocessing"),
    "pyzmq": ("pyzmq", "zmq"),
    "iceoryx2": ("iceoryx2", "iceoryx2"),
    "zenoh": ("zenoh shm", "zenoh"),
}
"""Name of the plugin -> (the contender's name, the module that it needs)."""


class BusPeerOptions(ScenarioOptions):
    """`params` of a bus_peer case."""

    ours: str = Field(default="cpp_spmc", description="bus backend")
    payload_bytes: int = Field(
        default=65_536, ge=16, le=1 << 30, multiple_of=8, description="bytes per packet"
    )
    total_mib: float = Field(default=256, gt=0, le=1 << 16, description="MiB moved per side")
    timeout_s: float = Field(default=120, gt=0, description="longest transfer, in seconds")


def runner(peer: str) -> Callable[[RoundContext], None]:
    """A scenario's `run` for one peer: move the same bytes through both, record the ratio."""
    return lambda context: _run(context, PEERS[peer][0])


def _run(context: RoundContext, peer: str) -> None:
    options = context.options
    assert isinstance(options, BusPeerOptions)
    try:
        reason = registry("backend").get(options.ours, BusPlugin).unavailable()
    except PluginError as error:
        reason = str(error)
    if reason is not None:
        raise ScenarioError(f"backend {options.ours!r} cannot run here: {reason}")
    order = [options.ours, peer] if context.seed % 2 else [peer, options.ours]
    with context.timed():
        gbps = {name: _throughput(name, options) for name in order}
    context.value("throughput_gbps", gbps[options.ours])
    context.value("peer_throughput_gbps", gbps[peer])
    context.value("speed_over_peer", gbps[options.ours] / gbps[peer])


def _throughput(contender: str, options: BusPeerOptions) -> float:
    packets = max(16, int(options.total_mib * (1 << 20)) // options.payload_bytes)
    command = [sys.executable, "-P", str(TRANSPORTS), contender]
    try:
        done = subprocess.run(
            [*command, str(options.payload_bytes), str(packets)],
            capture_output=True,
            text=True,
            timeout=options.timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ScenarioError(
            f"{contender}: {packets} packets of {options.payload_bytes} bytes took over "
            f"{options.timeout_s:g} s; lower total_mib"
        ) from None
    try:
        return float(json.loads(done.stdout)["gbps"])
    except (ValueError, KeyError, TypeError):
        said = (done.stderr or done.stdout).strip()
        raise ScenarioError(f"{contender}: exit {done.returncode}: {said[-1000:]}") from None


def unavailable(peer: str) -> str | None:
    """Why the peer cannot run here, with the fix; None when it can."""
    module = PEERS[peer][1]
    package = {"zmq": "pyzmq", "zenoh": "eclipse-zenoh"}.get(module, module)
    return (
        None
        if importlib.util.find_spec(module)
        else f"{package} is not installed; pip install {package}"
    )


def _plugin(peer: str) -> ScenarioPlugin:
    return ScenarioPlugin(
        name=f"bus_peer_{peer}",
        summary=f"our bus against {PEERS[peer][0]}: the same bytes through both",
        options=BusPeerOptions,
        takes="nothing",
        metrics={
            "throughput_gbps": MetricSpec("higher", MetricKind.ROUND, "through our bus"),
            "peer_throughput_gbps": MetricSpec("higher", MetricKind.ROUND, "through the peer"),
            "speed_over_peer": MetricSpec("higher", MetricKind.ROUND, "ours over the peer's"),
        },
        run=runner(peer),
        unavailable=lambda: unavailable(peer),
    )


mp_queue = _plugin("mp_queue")
pyzmq = _plugin("pyzmq")
iceoryx2 = _plugin("iceoryx2")
zenoh = _plugin("zenoh")
