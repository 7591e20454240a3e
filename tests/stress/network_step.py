"""What the network costs a training step: SAEs on another machine against the same workers beside it.

    python -P tests/stress/network_step.py [QUADS [BLOCK_S [CONDITION...]]]     as root; lines of JSON

Two training processes of one machine take turns in blocks of BLOCK_S seconds, in quads (`ORDERS`): `remote`
sends to a receiver in another network namespace (`network`), `local` has the receiver's trainer as a worker
of its own; both archive. The layout of both is the same: the training process has the first core, and its
workers, the receiver, the relay that is the network, and this process share the others, as pinning does it.
In conditions in which the receiver's machine goes away it does so for each of QUADS / 3 quads, and comes back
after it. Several conditions have one set of processes, so there is an account of each set.

`step_ratio`: median step of `remote` over that of `local` by the clock; `cpu_ratio`: CPU time of the host's
thread for each step, pauses included. Both are medians over quads of blocks with 95 % bootstrap intervals.
`captured`: share of the steps whose activations went onto the bus. `forwarder_cpu_share`: of a core, over all
blocks and the time between them. Runs are written to /dev/shm where it has 4 GiB. Run it on a machine that
does nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any

from asys_bench.system.process_usage import process_usage

if __package__:
    from . import run_network as rn
    from .median_ratio import median_ratio
    from .network import Network, missing
    from .network_host import WARM_S
else:
    sys.path.insert(0, str(Path(__file__).parent))
    import run_network as rn
    from median_ratio import median_ratio
    from network import Network, missing
    from network_host import WARM_S

QUADS, BLOCK_S = 12, 1.0
ORDERS = (("remote", "local", "local", "remote"), ("local", "remote", "remote", "local"))
AWAY_S, SETTLE_S = 10.0, 1.0
MEMORY, ROOM_BYTES = "/dev/shm", 4 << 30
RATIOS = {"step_ratio": "median_us", "mean_ratio": "mean_us", "cpu_ratio": "cpu_us"}
Said = dict[str, float]


class Pair:
    """Both training processes, the receiver and the network, under one condition after another."""

    def __init__(self, folder: Path, held: dict[str, Any], stack: ExitStack) -> None:
        rn.make_keys(folder)
        self.network = stack.enter_context(Network("host", "sae"))
        host, self.sae = self.network["host"], self.network["sae"]
        self.receiver = stack.enter_context(rn.Receiver(self.sae, folder, pin=True))
        self.receiver.until_listening()
        self.trainings = {
            name: stack.enter_context(
                rn.Training(host, folder, name, remote=name == "remote", rows=rn.ROWS, pin=True,
                            held=held)
            )
            for name in ("remote", "local")
        }  # fmt: skip
        self.remote = self.trainings["remote"]
        for one in self.trainings.values():
            one.until_observing()
        rn.until(self.remote.is_connected, "the connection", self.remote.process)
        if rn.OTHER_CPUS:
            for pid in (0, self.network.relay_pid):
                os.sched_setaffinity(pid, rn.OTHER_CPUS)

    def under(self, name: str, quads: int, block_s: float) -> dict[str, Any]:
        """The figures of one condition."""
        told = rn.CONDITIONS[name]
        rn.impose(self.network, told)
        figures = {"condition": name, "ping_ms": round(self.network["host"].ping_ms(self.sae), 2)}
        for one in self.trainings.values():
            one.rows = told["rows"]
            one.train(SETTLE_S)
        before, dropped = self._calls(), rn.dropped(self.remote)
        began, cpu_s = time.monotonic(), self._forwarder_s()
        if told["away"]:
            found, caught_up = self._away(told["away"], max(2, quads // 3))
            figures["caught_up_s"] = [round(one, 2) for one in caught_up]
        else:
            found = [self._quad(n, block_s) for n in range(quads)]
        after = self._calls()
        share = (self._forwarder_s() - cpu_s) / (time.monotonic() - began)
        return {
            **figures,
            "quads": len(found),
            **{key: interval(found, of) for key, of in RATIOS.items()},
            "step_us": {one: round(_median(found, one, "median_us"), 1) for one in self.trainings},
            "cpu_us": {one: round(_median(found, one, "cpu_us"), 1) for one in self.trainings},
            "captured": {
                one: round(
                    (after[one][1] - before[one][1]) / max(1, after[one][0] - before[one][0]), 4
                )
                for one in self.trainings
            },
            "forwarder_cpu_share": round(share, 4),
            "dropped": rn.difference(rn.dropped(self.remote), dropped),
            "load": [round(one, 1) for one in os.getloadavg()],
        }

    def _quad(self, number: int, block_s: float) -> list[tuple[str, Said]]:
        return [(name, self.trainings[name].train(block_s)) for name in ORDERS[number % 2]]

    def _away(self, how: str, quads: int) -> tuple[list[list[tuple[str, Said]]], list[float]]:
        """Quads while the receiver's machine is away, and how long it took after each to catch up."""
        found, caught_up = [], []
        for number in range(quads):
            rn.go_away(self.sae, how)
            began = time.monotonic()
            found.append(self._quad(number, AWAY_S / 4 - WARM_S))
            time.sleep(max(0.0, began + AWAY_S - time.monotonic()))
            self.remote.start(rn.CATCHING_UP_S)
            rn.come_back(self.sae, how)
            caught_up.append(rn.until(lambda: rn.caught_up(self.remote), "catching up"))
            self.remote.said()
        return found, caught_up

    def _calls(self) -> dict[str, tuple[int, int]]:
        """Of each training process: calls of its hook, and how many of them went onto the bus."""
        found = {}
        for name, one in self.trainings.items():
            figures = one.figures()
            hook = figures.hooks[0] if figures is not None else None
            found[name] = (hook.calls, hook.captured) if hook is not None else (0, 0)
        return found

    def _forwarder_s(self) -> float:
        """CPU seconds of the forwarder."""
        figures = self.remote.figures()
        assert figures is not None
        (pid,) = (one.pid for one in figures.workers if one.name == "remote-0")
        return (process_usage(pid) or (0.0, 0))[0]

    def end(self, folder: Path) -> dict[str, Any]:
        """The last account."""
        rn.until(lambda: rn.caught_up(self.remote), "catching up")
        for one in self.trainings.values():
            one.end()
        self.receiver.end()
        return rn.accounts(folder, self.receiver, self.remote)


def interval(quads: Sequence[Sequence[tuple[str, Said]]], of: str) -> dict[str, float]:
    """Remote over local, of each quad; the median, and its 95 % bootstrap interval."""
    found = []
    for quad in quads:
        sums = {name: sum(said[of] for who, said in quad if who == name) for name in ORDERS[0][:2]}
        found.append(sums["remote"] / sums["local"])
    return median_ratio(found)


def _median(quads: Sequence[Sequence[tuple[str, Said]]], name: str, of: str) -> float:
    return statistics.median(said[of] for quad in quads for who, said in quad if who == name)


def compare(
    folder: Path, names: Sequence[str], quads: int = QUADS, block_s: float = BLOCK_S
) -> Iterator[dict[str, Any]]:
    """The figures of each condition, and after each set of processes its account (`conditions`)."""
    affinity = os.sched_getaffinity(0)
    for number, (_, group) in enumerate(
        groupby(names, lambda one: str(rn.CONDITIONS[one]["held"]))
    ):
        conditions = list(group)
        place = folder / str(number)
        place.mkdir()
        with ExitStack() as stack:
            stack.callback(os.sched_setaffinity, 0, affinity)
            pair = Pair(place, rn.CONDITIONS[conditions[0]]["held"], stack)
            for name in conditions:
                yield pair.under(name, quads, block_s)
            yield {"conditions": conditions, **pair.end(place)}


def roomy() -> str | None:
    """Where archives disturb no disk, if there is room; None: the usual place."""
    try:
        return MEMORY if shutil.disk_usage(MEMORY).free > ROOM_BYTES else None
    except OSError:
        return None


def main() -> int:
    if (why := missing()) is not None:
        print(why, file=sys.stderr)
        return 2
    quads = int(sys.argv[1]) if len(sys.argv) > 1 else QUADS
    block_s = float(sys.argv[2]) if len(sys.argv) > 2 else BLOCK_S
    began, broken = time.monotonic(), False
    with tempfile.TemporaryDirectory(prefix="network-step-", dir=roomy()) as folder:
        for figures in compare(Path(folder), sys.argv[3:] or [*rn.CONDITIONS], quads, block_s):
            broken = broken or bool(figures.get("problems"))
            print(json.dumps(figures), flush=True)
    print(json.dumps({"minutes": round((time.monotonic() - began) / 60, 1)}))
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
