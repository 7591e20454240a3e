"""Readers are killed at random while packets flow: nothing torn, and loss only as promised.

`make soak` (ASYS_SOAK=1) runs 10 million packets and 1,000 kills on the rings.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from asys_bench.contracts.bus import BusPlugin
from asys_bench.registry import registry

SCRIPT = Path(__file__).with_name("storm.py")
SOAK = os.environ.get("ASYS_SOAK") == "1"
BATCH = 16
SIZES = {
    "cpp_spmc": (10_000_000, 1000),
    "numba_ring": (10_000_000, 1000),
    "mp_queue": (500_000, 200),
}
QUICK = (60_000, 20)
SHORT, LONG = 200, 8000
"""Words of the longest packet: copied always alike, or by the stores that the ring chooses."""
FEWER = 20
"""Packets that are long, against those that are short."""


@pytest.mark.rest
@pytest.mark.stress
@pytest.mark.parametrize("longest", [SHORT, LONG])
@pytest.mark.parametrize("backend", registry("backend").names())
def test_killed_readers_tear_nothing_and_lose_only_what_was_promised(backend, longest):
    plugin = registry("backend").get(backend, BusPlugin)
    reason = plugin.unavailable()
    can = plugin.capabilities
    if reason or not (can.cross_process and can.transports_payload and can.survives_consumer_kill):
        pytest.skip(reason or f"{backend} has no consumers in other processes")
    packets, kills = SIZES.get(backend, QUICK) if SOAK else QUICK
    packets //= FEWER if longest == LONG else 1
    done = subprocess.run(
        [sys.executable, "-P", str(SCRIPT), backend, str(packets), str(kills), "1", str(longest)],
        capture_output=True, text=True, check=False, timeout=3000 if SOAK else 400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    outcome = json.loads(done.stdout)
    train, archive = outcome["train"], outcome["archive"]
    assert outcome["sent"] == packets
    assert outcome["kills"] == kills
    assert outcome["readers_failed"] == 0, done.stderr
    assert outcome["imbalance"] == [0, 0]
    assert outcome["left_behind"] == []
    assert train["torn"] == archive["torn"] == 0
    assert train["ready"] == archive["ready"] == 0
    # at_least_once: every packet was logged by somebody.
    assert archive["missing"] == 0
    assert archive["lost_in_flight"] == archive["dead_lettered"] == 0
    assert archive["duplicates"] <= kills * BATCH
    # at_most_once: never twice, and lost only in a dead reader's hands.
    assert train["duplicates"] == 0
    assert train["lost_in_flight"] <= kills * BATCH
    assert train["missing"] <= kills * BATCH
