"""Our buses against their peers in one interleaved run: near and far cores apart, ratios within a round.

    python tests/benchmarks/bus/compare.py [--minutes 14] [--sizes 4096,65536] [--pools 16,64] [--json FILE]

Every contender's processes are started once per payload size and stay. A round measures one size with
one pool of payloads: every contender for a fraction of a second, in an order that rotates, with a
cache line sent to and fro around each, and the two-process C reference `copy_pipeline` (cached and
streaming stores over 64 MiB, and cached ones over a window of 4 MiB, where the writer waits). It goes
on until each regime has 12 rounds everywhere, or the time is over. A contender that is not installed,
fails or hangs is left out from then on, and named.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[2] / "suites/peers")]

import cores  # noqa: E402
from pairs import MissingPeerError, Pair, PairError  # noqa: E402
from table import Figure, against_best, figures, lines  # noqa: E402

OURS = "cpp_spmc"
PEERS = (
    "mp.Queue", "faster-fifo", "pyzmq", "iceoryx2", "iceoryx2 deep", "zenoh shm", "vLLM ring",
)  # fmt: skip
NAMES = (OURS, "cpp_spmc one a pull", "cpp_spmc batch 64", "numba_ring", "mp_queue", *PEERS)
BOUND = 1.1
TIMEOUT_S = 20.0
"""A contender that hangs is left out."""
REFERENCES = {
    "copy_pipeline cached": ("cached", 64 << 20),
    "copy_pipeline streaming": ("streaming", 64 << 20),
    "copy_pipeline cached, 4 MiB": ("cached", 4 << 20),
}
REFERENCE_BYTES = 256 << 20

Cell = tuple[int, int]
"""Payload bytes, pool in MiB."""


class Comparison:
    """The contenders of every size, and what was measured."""

    def __init__(
        self, stack: ExitStack, names: list[str], sizes: list[int], pools: list[int]
    ) -> None:
        program = cores.built()
        if program is None:
            raise SystemExit("g++ is needed for the cache-line time and the reference: install it")
        self.program, self.cpus = program, cores.pair()
        self.pairs: dict[int, dict[str, Pair]] = {}
        self.rounds: dict[Cell, list[dict[str, Figure]]] = defaultdict(list)
        self.absent: set[str] = set()
        """Contenders that did not start with one size and are not tried with the next."""
        self.left_out: dict[str, None] = {}
        """Why, of each contender and size."""
        for size in sizes:
            self.pairs[size] = self._started(stack, names, size, pools)

    def _started(
        self, stack: ExitStack, names: list[str], size: int, pools: list[int]
    ) -> dict[str, Pair]:
        pairs = {
            name: stack.enter_context(Pair(name, size, self.cpus, TIMEOUT_S))
            for name in names
            if name not in self.absent
        }
        for name, pair in list(pairs.items()):
            try:
                for pool in pools:
                    pair.start(pool << 20) if pool == pools[0] else pair.gbps(0.05, pool << 20)
            except PairError as error:
                self._leave_out(pairs, name, error)
                self.absent.add(name)
        return pairs

    def _leave_out(self, pairs: dict[str, Pair], name: str, error: PairError) -> None:
        kind = "not installed" if isinstance(error, MissingPeerError) else "failed"
        print(f"left out, {kind}: {error}", file=sys.stderr, flush=True)
        self.left_out[str(error)] = None
        pairs.pop(name).close()

    def round(self, cell: Cell, seconds: float) -> None:
        """Measure everything of one cell once."""
        size, pool = cell
        names = [*self.pairs[size], *REFERENCES]
        turn = len(self.rounds[cell]) % len(names)
        found = {}
        before = cores.ping_ns(self.program, self.cpus)
        for name in names[turn:] + names[:turn]:
            try:
                gbps = self._gbps(name, size, pool << 20, seconds)
            except PairError as error:  # the others go on without it
                self._leave_out(self.pairs[size], name, error)
                continue
            after = cores.ping_ns(self.program, self.cpus)
            found[name] = Figure(gbps, cores.regime((before, after)))
            before = after
        self.rounds[cell].append(found)

    def _gbps(self, name: str, size: int, pool_bytes: int, seconds: float) -> float:
        if name not in REFERENCES:
            return self.pairs[size][name].gbps(seconds, pool_bytes)
        kind, window = REFERENCES[name]
        packets = max(16, REFERENCE_BYTES // size)
        return cores.call(self.program, size, packets, kind, window, pool_bytes, *self.cpus)

    def is_done(self, cells: list[Cell]) -> bool:
        """Whether each regime has its rounds in every cell."""
        return all(
            len(figures(self.rounds[cell], OURS, regime)) >= cores.LEAST_ROUNDS + 4
            for cell in cells
            for regime in cores.REGIMES
        )


def report(comparison: Comparison) -> None:
    """Markdown: what holds, then every figure."""
    print(f"\n| payload | pool | regime | {OURS} over its best peer | rounds | >= {BOUND} |")
    print("|---|---|---|---|---|---|")
    for (size, pool), rounds in comparison.rounds.items():
        for regime in cores.REGIMES:
            one = against_best(rounds, OURS, PEERS, regime)
            shown = ""
            if one.ratio is not None:
                span = one.ratio
                shown = f"{span.estimate:.2f} ({span.low:.2f}..{span.high:.2f}) x {one.peer}"
            print(
                f"| {size} | {pool} MiB | {regime} | {shown} | {one.rounds} | {one.verdict(BOUND)} |"
            )
    for (size, pool), rounds in comparison.rounds.items():
        print(f"\n#### {size} bytes, pool of {pool} MiB\n")
        for line in lines(rounds, [*NAMES, *REFERENCES], OURS, PEERS):
            print(line)
    for why in comparison.left_out:
        print(f"\nLeft out: {why}")


def as_json(comparison: Comparison) -> str:
    """Every figure, by payload bytes and pool."""
    plain = {
        f"{size} {pool}": [{name: asdict(one[name]) for name in one} for one in rounds]
        for (size, pool), rounds in comparison.rounds.items()
    }
    return json.dumps(plain, indent=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=14, help="longest time, start included")
    parser.add_argument("--sizes", default="4096,65536,1048576,16777216")
    parser.add_argument("--pools", default="16,64", help="MiB of random payloads")
    parser.add_argument("--seconds", type=float, default=0.15, help="of one measurement, about")
    parser.add_argument("--only", default="", help="comma-separated contenders")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    until = time.monotonic() + arguments.minutes * 60
    names = [name for name in NAMES if not arguments.only or name in arguments.only.split(",")]
    sizes = [int(size) for size in arguments.sizes.split(",")]
    pools = [int(pool) for pool in arguments.pools.split(",")]
    cells = [(size, pool) for size in sizes for pool in pools]
    with ExitStack() as stack:
        comparison = Comparison(stack, names, sizes, pools)
        try:
            for cell in itertools.cycle(cells):
                if time.monotonic() > until or comparison.is_done(cells):
                    break
                comparison.round(cell, arguments.seconds)
        finally:  # also what was measured until Ctrl-C
            report(comparison)
            if arguments.json:
                Path(arguments.json).write_text(as_json(comparison))


if __name__ == "__main__":
    main()
