"""bus_peer_*: our bus against a peer's transport, measured in turn on the same two cores.

`transports.py` holds the contenders: public interfaces only, every byte read by the consumer, counts
checked. A round keeps both sides' processes and measures them in turn, `turns` times, with a cache
line sent to and fro around each figure (`cores.py`); near and far turns are reported apart, and a
regime with fewer than 12 turns is not reported at all. A peer that is not installed makes the case
unavailable, with the reason, and fails nothing.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
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

from . import cores
from .pairs import Pair, PairError

PEERS: Mapping[str, tuple[str, str]] = {
    "mp_queue": ("mp.Queue", "multiprocessing"),
    "faster_fifo": ("faster-fifo", "faster_fifo"),
    "pyzmq": ("pyzmq", "zmq"),
    "iceoryx2": ("iceoryx2", "iceoryx2"),
    "zenoh": ("zenoh shm", "zenoh"),
}
"""Name of the plugin -> (the contender's name, the module that it needs)."""
PACKAGES: Mapping[str, str] = {
    "zmq": "pyzmq",
    "zenoh": "eclipse-zenoh",
    "faster_fifo": "faster-fifo",
}
"""Module -> its package, where the names differ."""


class BusPeerOptions(ScenarioOptions):
    """`params` of a bus_peer case."""

    ours: str = Field(default="cpp_spmc", description="bus backend")
    payload_bytes: int = Field(
        default=65_536, ge=16, le=1 << 30, multiple_of=8, description="bytes per packet"
    )
    pool_mib: int = Field(
        default=16, gt=0, le=1 << 12, description="MiB of random payloads that are sent in turn"
    )
    turns: int = Field(default=20, gt=0, le=1000, description="measurements of each side a round")
    turn_s: float = Field(
        default=0.08, gt=0, le=60, description="seconds of one measurement, about"
    )
    timeout_s: float = Field(default=120, gt=0, description="longest measurement, in seconds")


@dataclass(frozen=True)
class Turn:
    """Both sides once, and how far from each other the cores were meanwhile."""

    ours_gbps: float
    peer_gbps: float
    regime: str | None


def runner(peer: str) -> Callable[[RoundContext], None]:
    """A scenario's `run` for one peer: move the same bytes through both, record the ratios."""
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
    try:
        with context.timed():
            turns = _turns(options, peer, ours_first=bool(context.seed % 2))
    except PairError as error:
        raise ScenarioError(str(error)) from None
    for metric, value in figures(turns).items():
        context.value(metric, value)


def _turns(options: BusPeerOptions, peer: str, *, ours_first: bool) -> list[Turn]:
    cpus, program, pool = cores.pair(), cores.built(), options.pool_mib << 20
    with ExitStack() as stack:
        pairs = {
            name: stack.enter_context(Pair(name, options.payload_bytes, cpus, options.timeout_s))
            for name in (options.ours, peer)
        }
        for pair in pairs.values():
            pair.start(pool)
        found = []
        for index in range(options.turns):
            order = [options.ours, peer] if index % 2 != ours_first else [peer, options.ours]
            pings, gbps = [_ping(program, cpus)], {}
            for name in order:
                gbps[name] = pairs[name].gbps(options.turn_s, pool)
                pings.append(_ping(program, cpus))
            known = [ping for ping in pings if ping is not None]
            regime = cores.regime(known) if len(known) == len(pings) else None
            found.append(Turn(gbps[options.ours], gbps[peer], regime))
        return found


def _ping(program: Path | None, cpus: tuple[int, int]) -> float | None:
    return None if program is None else cores.ping_ns(program, cpus)


def figures(turns: Sequence[Turn]) -> dict[str, float]:
    """The round's metrics: medians over its turns; a regime's only where it has enough of them."""
    found = {
        "throughput_gbps": statistics.median(turn.ours_gbps for turn in turns),
        "peer_throughput_gbps": statistics.median(turn.peer_gbps for turn in turns),
        "speed_over_peer": statistics.median(turn.ours_gbps / turn.peer_gbps for turn in turns),
    }
    for regime in cores.REGIMES:
        ratios = [turn.ours_gbps / turn.peer_gbps for turn in turns if turn.regime == regime]
        if len(ratios) >= cores.LEAST_ROUNDS:
            found[f"speed_over_peer_{regime}"] = statistics.median(ratios)
    return found


def unavailable(peer: str) -> str | None:
    """Why the peer cannot run here, with the fix; None when it can."""
    module = PEERS[peer][1]
    package = PACKAGES.get(module, module)
    return (
        None
        if importlib.util.find_spec(module)
        else f"{package} is not installed; pip install {package}"
    )


def _plugin(peer: str) -> ScenarioPlugin:
    higher = [
        ("throughput_gbps", "through our bus"),
        ("peer_throughput_gbps", "through the peer"),
        ("speed_over_peer", "ours over the peer's"),
        ("speed_over_peer_near", "the same while the two cores shared a cache"),
        ("speed_over_peer_far", "the same while they did not"),
    ]
    return ScenarioPlugin(
        name=f"bus_peer_{peer}",
        summary=f"our bus against {PEERS[peer][0]}: the same bytes through both",
        options=BusPeerOptions,
        takes="nothing",
        metrics={name: MetricSpec("higher", MetricKind.ROUND, what) for name, what in higher},
        run=runner(peer),
        unavailable=lambda: unavailable(peer),
    )


mp_queue = _plugin("mp_queue")
faster_fifo = _plugin("faster_fifo")
pyzmq = _plugin("pyzmq")
iceoryx2 = _plugin("iceoryx2")
zenoh = _plugin("zenoh")
