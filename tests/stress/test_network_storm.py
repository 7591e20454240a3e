"""A forwarder, its connections, its receiver and workers die at random, and every packet is accounted for.

`make soak` (ASYS_SOAK=1) strikes 600 connections, 300 forwarders, 80 workers and 20 receivers.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .network_storm import Storm, strike

SOAK = os.environ.get("ASYS_SOAK") == "1"
SEED = int(os.environ.get("ASYS_SOAK_SEED", "1"))
QUICK = Storm(connections=6, forwarders=3, workers=2, receivers=1, seed=SEED)


@pytest.mark.timeout(600)
@pytest.mark.soak("a minute and more")
def test_a_short_storm_between_two_nodes_loses_nothing_uncounted(tmp_path: Path) -> None:
    end = strike(tmp_path, QUICK)
    print(end)
    assert end.broken == []
    assert end.struck == {"connection": 6, "forwarder": 3, "worker": 2, "receiver": 1}
    assert end.figures["acked"] > 0


@pytest.mark.timeout(3 * 3600)
@pytest.mark.soak("half an hour")
def test_a_thousand_strikes_between_two_nodes_lose_nothing_uncounted(tmp_path: Path) -> None:
    end = strike(tmp_path, Storm.from_environment(SEED))
    print(end)
    assert end.broken == []
