"""Random processes of a run get random signals, and nothing shows of it but in the counts.

Every process but the host, in four ways on each bus (`make test-rest`: each way on one bus, each bus in
one way): the host's exit, weights and close, the account, the archive against an unobserved twin,
`verify`, terminal, processes and files (`run_storms.NEVER`).
`make soak` (ASYS_SOAK=1) strikes 200 storms of 20 s and prints a line for each; ASYS_SOAK_SEED sets the
first one's seed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from .run_storms import KINDS, Storm, StormEnd, Storms, many, strike_all, told

SOAK = os.environ.get("ASYS_SOAK") == "1"
SEED = int(os.environ.get("ASYS_SOAK_SEED", "1"))
SIDE_BY_SIDE = min((os.cpu_count() or 1) + 1, 16)
QUICK_S, LONG_S, LONG_STORMS = 3.0, 20.0, 200
QUICK = [kind for kind in KINDS if kind[1] == "cpp_spmc" or kind[0] == "storm"]
"""Every way on one bus, and all signals together on the others."""


def check(end: StormEnd) -> None:
    print(told(end))
    assert end.broken == {}, f"{told(end)}\n{end.log}"
    assert end.figures["signals"] > 0


@pytest.fixture(scope="module")
def quick_storms() -> Iterator[dict[tuple[str, str], Future[StormEnd]]]:
    """One of each kind, started side by side by the first who asks."""
    running = Storms(SIDE_BY_SIDE)
    storms = [Storm(*kind, SEED, QUICK_S) for kind in QUICK]
    yield dict(zip(QUICK, running.start(storms), strict=True))
    running.close()


@pytest.mark.rest
@pytest.mark.stress
@pytest.mark.timeout(600)
@pytest.mark.skipif(SOAK, reason="make soak strikes for longer")
@pytest.mark.parametrize(("fault", "bus"), QUICK)
def test_a_storm_of_signals_breaks_no_promise(quick_storms, fault, bus):
    check(quick_storms[fault, bus].result())


@pytest.mark.timeout(4 * 3600)
@pytest.mark.soak("an hour")
def test_two_hundred_storms_break_no_promise():
    print(f"seeds {SEED} to {SEED + LONG_STORMS - 1}, {SIDE_BY_SIDE} side by side")
    ends = []
    for end in strike_all(many(LONG_STORMS, SEED, LONG_S), SIDE_BY_SIDE):
        print(told(end), flush=True)
        ends.append(end)
    broken = [f"{told(end)}\n{end.log}" for end in ends if end.broken]
    assert len(ends) == LONG_STORMS
    assert not broken, "\n".join(broken)
